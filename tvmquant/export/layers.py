"""Convolutions and dense layers, with the bias that is added to their sums.

A bias is added in float, as the library adds it: at the offset of its rounding, not in steps of the
accumulator. Asked for, it is written in these steps, in 32 bits, which runtimes that do not round a
bias by themselves need for their integer kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tvmquant.arithmetic import INT32_MAX, Array
from tvmquant.export.call_writer import CallWriter, Writer
from tvmquant.export.weights import WeightLayout, write_weight
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.tensor_types import integers
from tvmquant.passes.accumulator import Contraction
from tvmquant.passes.region_operators import output_axis


def bias_of(layer: Any, addition: Any) -> Array | None:
    """Return what an addition adds to each output of a layer; None where it adds something else.

    Returns
    -------
    float32 array of shape (O,)
    """
    if not qop.is_call(layer, *qop.FLOAT_CONTRACTIONS) or not qop.is_call(addition, "relax.add"):
        return None
    rank, axis = len(layer.ty.shape.values), output_axis(layer)
    if qop.is_call(layer, "relax.matmul") and rank != 2:
        return None  # a Gemm has two axes
    constants = [a for a in map(qop.constant_array, addition.args) if a is not None]
    if len(constants) != 1 or constants[0].ndim > rank:
        return None
    constant = constants[0]
    shape = (1,) * (rank - constant.ndim) + constant.shape
    outputs = int(layer.ty.shape.values[axis])
    if any(extent != 1 for i, extent in enumerate(shape) if i != axis):
        return None
    return np.ascontiguousarray(np.broadcast_to(constant.reshape(-1), (outputs,)))


def _conv2d(writer: CallWriter) -> str:
    a = writer.attrs
    groups = int(a.groups)
    return writer.node(
        "Conv", _operands(writer, WeightLayout(0, groups)), strides=integers(a.strides),
        pads=integers(a.padding), dilations=integers(a.dilation), group=groups,
        kernel_shape=_kernel(writer),
    )  # fmt: skip


def _conv2d_transpose(writer: CallWriter) -> str:
    a = writer.attrs
    groups = int(a.groups)
    return writer.node(
        "ConvTranspose", _operands(writer, WeightLayout(1, groups)), strides=integers(a.strides),
        pads=integers(a.padding), dilations=integers(a.dilation), group=groups,
        output_padding=integers(a.output_padding), kernel_shape=_kernel(writer),
    )  # fmt: skip


def _matmul(writer: CallWriter) -> str:
    operands = _operands(writer, WeightLayout(1))
    return writer.node("Gemm" if len(operands) > 2 else "MatMul", operands)


def _kernel(writer: CallWriter) -> tuple[int, ...]:
    return integers(writer.call.args[1].ty.shape.values[2:])


def _operands(writer: CallWriter, layout: WeightLayout) -> list[str]:
    """Return the input, the weight, and the bias if there is one."""
    network = writer.network
    layer = network.reading.layers.get(writer.var)
    if layer is None:
        operands = [writer.tensor(0), writer.tensor(1)]
    else:
        x = network.integers_of(writer.var, writer.call.args[0], layer.x, writer.name)
        name = f"{writer.name}.weight"
        operands = [
            x, write_weight(writer.builder, layer.weight, layout, name, packs=network.packs)
        ]  # fmt: skip
    total = network.biases.get(writer.var)
    if total is None:
        return operands
    bias = bias_of(writer.call, network.bindings[total])
    assert bias is not None  # that is how the addition was found
    return [*operands, _bias(writer, layer, bias)]


def _bias(writer: CallWriter, layer: Contraction | None, bias: Array) -> str:
    if layer is None:
        return writer.constant(bias, "bias")
    moves = writer.network.reading.bias_moves.get(writer.call.args[1])
    if moves is not None:
        bias = (bias + moves).astype(np.float32)
    if not writer.network.rounds_bias:
        return writer.constant(bias, "bias")
    scale = np.float32(layer.x.scale) * layer.weight.scale.astype(np.float32)
    steps = np.clip(np.rint(bias / scale.astype(np.float64)), -INT32_MAX, INT32_MAX)
    rounded = writer.constant(steps.astype(np.int32), "bias/integers")
    return writer.builder.node(
        "DequantizeLinear", [rounded, writer.constant(scale, "bias/scale")],
        f"{writer.name}.bias/DequantizeLinear", axis=0,
    )  # fmt: skip


LAYERS: dict[str, Writer] = {
    "relax.nn.conv2d": _conv2d,
    "relax.nn.conv2d_transpose": _conv2d_transpose,
    "relax.matmul": _matmul,
}
