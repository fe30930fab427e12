import numpy as np
import pytest
import tvm
from tvm import relax

from tvmquant.errors import QuantizationError
from tvmquant.simulator import simulate

op = relax.op.nn
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 4, 7, 6)).astype(np.float32)


def weight(*shape):
    return relax.const(RNG.normal(size=shape).astype(np.float32))


OPERATORS = [
    lambda x: op.conv2d(x, weight(5, 4, 3, 2)),
    lambda x: op.conv2d(x, weight(6, 2, 3, 3), (2, 1), (1, 0, 2, 1), dilation=(1, 2), groups=2),
    lambda x: op.conv2d(x, weight(8, 1, 3, 3), padding=1, groups=4),
    lambda x: op.conv2d_transpose(x, weight(4, 5, 3, 2)),
    lambda x: op.conv2d_transpose(
        x, weight(4, 3, 3, 3), (2, 3), (1, 0, 2, 1), output_padding=(1, 2), groups=2
    ),
    lambda x: op.avg_pool2d(x, (3, 2), (2, 1)),
    lambda x: op.avg_pool2d(x, (3, 3), (2, 2), (1, 1, 1, 1)),
    lambda x: op.avg_pool2d(x, (3, 3), (1, 2), (1, 0, 2, 1), count_include_pad=True),
]


def test_windows_of_floats_follow_tvm(build_graph):
    def everything(builder, x):
        return relax.Tuple([builder.emit(make(x)) for make in OPERATORS])

    module = build_graph([((4, 7, 6), "float32")], everything)
    machine = relax.VirtualMachine(tvm.compile(module, "llvm"), tvm.cpu())
    expected = machine["main"](tvm.runtime.tensor(X))
    for result, reference in zip(simulate(module, X), expected, strict=True):
        assert str(result.dtype) == str(reference.dtype)
        np.testing.assert_allclose(result, reference.numpy(), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _, x: op.conv2d(x, weight(5, 6, 3, 3), data_layout="NHWC"), "NCHW only"),
        (lambda _, x: op.avg_pool2d(x, (3, 3), (2, 2), ceil_mode=True), "found ceil_mode"),
    ],
)
def test_other_forms_are_refused(run_graph, make, message):
    with pytest.raises(QuantizationError, match=message):
        run_graph(make, X)
