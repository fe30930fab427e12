import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.graphs import calls, const, graph, normal, run_twin
from tvmquant.ir import quantized_ops as qop
from tvmquant.passes.crop_kernels import CropKernels

op = relax.op


def conv(shape, weight, **options):
    return graph(lambda emit, x: emit(op.nn.conv2d(x, const(weight), **options), "conv"), shape)


def kernel_of(module):
    (call,) = calls(module, "relax.nn.conv2d")
    return qop.constant_array(call.args[1]).shape[2:], [int(p) for p in call.attrs.padding]


CASES = {
    "one pixel": ((2, 4, 1, 1), (3, 3), {"padding": 1}, (1, 1), [0, 0, 0, 0]),
    "one row": ((2, 4, 1, 5), (3, 3), {"padding": 1}, (1, 3), [0, 1, 0, 1]),
    "dilated": ((2, 4, 3, 3), (3, 3), {"padding": 3, "dilation": 3}, (1, 1), [0, 0, 0, 0]),
    "dilated, two of three": (
        (2, 4, 3, 3), (3, 3), {"padding": (2, 2, 0, 0), "dilation": 2}, (2, 2), [0, 0, 0, 0],
    ),
    "with a stride": (
        (2, 4, 2, 2), (5, 5), {"padding": 2, "strides": 4}, (2, 2), [0, 0, 1, 1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_rows_and_columns_that_meet_padding_only(name):
    shape, kernel, options, cropped, padding = CASES[name]
    module = conv(shape, normal(5, 4, *kernel), **options)
    after = CropKernels()(module)
    relax.analysis.well_formed(after)
    assert kernel_of(after) == (cropped, padding)
    x = normal(*shape)
    for want, got in zip(run_twin(module, [x]), run_twin(after, [x]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    tvm.ir.assert_structural_equal(CropKernels()(after), after)


@pytest.mark.parametrize(
    ("shape", "options"),
    [((2, 4, 2, 2), {"padding": 1}), ((2, 4, 3, 3), {"padding": 2}), ((2, 4, 9, 9), {})],
)
def test_a_kernel_whose_every_tap_counts_stays(shape, options):
    module = conv(shape, normal(5, 4, 3, 3), **options)
    tvm.ir.assert_structural_equal(CropKernels()(module), module)
