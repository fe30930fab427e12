"""Convolutions pad their input themselves."""

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.graphs import graph
from tvmquant.ir import quantized_ops as qop
from tvmquant.passes.fuse_padding import FusePadding

SHAPE = (2, 3, 5, 6)
WEIGHT = np.arange(-27, 27, dtype=np.int8).reshape(2, 3, 3, 3)
BIAS = np.arange(2, dtype=np.int32)


def layer(x, padding, zero_point=128):
    attrs = {
        "strides": [1, 2], "padding": padding, "dilation": [1, 1], "groups": 1, "layout": "NCHW",
        "input_zero_point": zero_point, "epilogue": 0, "out_dtype": "int32", "id": "conv",
    }  # fmt: skip
    return qop.emit(qop.QCONV2D, [x, qop.constant(WEIGHT), qop.constant(BIAS)], attrs)


def padded(emit, x, widths=(0, 0, 0, 0, 1, 0, 2, 1), mode="constant"):
    return emit(relax.op.nn.pad(x, list(widths), mode, 129))


def made(body):
    return graph(body, SHAPE, dtype="uint8")


def test_layers_pad_with_any_constant():
    found = FusePadding()(made(lambda emit, x: emit(layer(padded(emit, x), [0, 0, 0, 0]))))
    expected = made(lambda emit, x: emit(layer(x, [1, 2, 0, 1], 129)))
    tvm.ir.assert_structural_equal(found, expected)
    tvm.ir.assert_structural_equal(FusePadding()(found), found)
    relax.analysis.well_formed(found)  # raises


def test_pads_of_a_model_that_is_channels_last():
    def body(emit, x):
        last = emit(relax.op.permute_dims(x, [0, 2, 3, 1]))
        last = padded(emit, last, (0, 0, 1, 0, 2, 1, 0, 0))
        return emit(layer(emit(relax.op.permute_dims(last, [0, 3, 1, 2])), [0, 0, 0, 0]))

    def expected(emit, x):
        last = emit(relax.op.permute_dims(x, [0, 2, 3, 1]))
        return emit(layer(emit(relax.op.permute_dims(last, [0, 3, 1, 2])), [1, 2, 0, 1], 129))

    tvm.ir.assert_structural_equal(FusePadding()(made(body)), made(expected))


@pytest.mark.parametrize(
    "body",
    [
        lambda emit, x: emit(layer(padded(emit, x), [1, 1, 1, 1])),
        lambda emit, x: emit(layer(padded(emit, x, mode="reflect"), [0, 0, 0, 0])),
        lambda emit, x: emit(layer(padded(emit, x, (1, 0, 0, 0, 0, 0, 0, 0)), [0, 0, 0, 0])),
    ],
)
def test_other_pads_stay(body):
    tvm.ir.assert_structural_equal(FusePadding()(made(body)), made(body))
