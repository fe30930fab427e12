import tvm
from tvm import te

from tvmquant.schedules import kernel_facts
from tvmquant.schedules.kernel_facts import with_facts


def copy():
    x = te.placeholder((4,), "uint8", name="x")
    return te.create_prim_func([x, te.compute((4,), lambda i: x[i], name="y")])


def test_kernels_say_what_they_are():
    kernel = with_facts(copy(), "copy_u8", "copy")
    assert kernel_facts.is_kernel(kernel)
    assert kernel_facts.name_of(kernel) == "copy_u8"
    assert kernel_facts.operation_of(kernel) == "copy"
    assert not kernel_facts.moves_channels(kernel)
    assert kernel_facts.moves_channels(with_facts(copy(), "copy_u8", "copy", channels_last=True))


def test_what_tvm_makes_of_operators_says_nothing():
    for function in (copy(), tvm.relax.Function([], tvm.relax.Tuple([]), is_pure=True)):
        assert not kernel_facts.is_kernel(function)
        assert kernel_facts.operation_of(function) == ""
        assert not kernel_facts.moves_channels(function)
