"""Scales that differ along a tensor, and how they follow the tensor through what only moves it.

A tensor may have a scale for each channel, or for each part that was concatenated: the real value
is ``scale * factors * (q - zero_point)``, with one number ``scale`` and an array ``factors`` that
broadcasts against the tensor. Whatever multiplies by constants of its own absorbs the factors:
a contraction into its weight, a requantization into its multipliers, a dequantization into its
scale. They cost nothing at run time.

`factors` have the tensor's rank and extent 1 along the batch, and along every axis they do not
vary on. Where an operator would mix values of different factors they cannot follow, which is told
by returning None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import tvm
import tvm_ffi
from tvm import relax

from tvmquant.arithmetic import Array, FloatArray
from tvmquant.ir import quantized_ops as qop
from tvmquant.passes.channel_affine import CONV2D, CONV2D_TRANSPOSE, MATMUL, result_layout

Number = TypeVar("Number", bound=np.generic)

# what numpy calls the modes of padding; a zero may have any factor
PAD_MODES: dict[str, Literal["edge", "reflect", "wrap"]] = {
    "constant": "edge",
    "replicate": "edge",
    "reflect": "reflect",
    "circular": "wrap",
}

LAYERS = (CONV2D, CONV2D_TRANSPOSE, MATMUL)
# What a region may end in between the layer that accumulates and the tensor.
EPILOGUES = ("relax.nn.relu", "relax.clip", "relax.add", "relax.subtract", "relax.multiply")
POOLS = ("relax.mean", "relax.nn.avg_pool2d")

RESHAPES = ("relax.reshape", "relax.flatten", "relax.squeeze", "relax.expand_dims")


def channel_axis(values: Mapping[relax.Var, relax.Expr], var: relax.Expr) -> int | None:
    """Return the axis of the channels of a tensor that is requantized from sums.

    None of one that a table makes, that is moved, or that stands at the border. Of two tensors that
    are added it is the axis of the first that a layer gives, seen through their quantization;
    without one, that of an image or of the last axis.

    Parameters
    ----------
    values : mapping of Var to Expr
        The bindings of an annotated (L1) graph.
    var : Var
        What is quantized.
    """
    value = values.get(var) if isinstance(var, relax.Var) else None
    if qop.is_call(value, *LAYERS):
        return result_layout(value)[1]
    if qop.is_call(value, *POOLS):
        return 1
    if not qop.is_call(value, *EPILOGUES, qop.FAKE_QUANT):
        return None
    operands = [arg for arg in value.args if isinstance(arg, relax.Var)]
    found = (axis for arg in operands if (axis := channel_axis(values, arg)) is not None)
    if len(operands) < 2 or not qop.is_call(value, "relax.add", "relax.subtract"):
        return next(found, None)
    rank = len(value.ty.shape.values)
    return next(found, 1 if rank == 4 else rank - 1)


def is_uniform(factors: Array) -> bool:
    """Whether all factors are equal."""
    return bool(np.all(factors == factors.reshape(-1)[0]))


def compressed(factors: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """Return factors with extent 1 along every axis on which they do not vary."""
    for axis, extent in enumerate(factors.shape):
        first = factors.take([0], axis=axis)
        if extent > 1 and np.all(factors == first):
            factors = first
    return factors


def varying_axes(factors: Array) -> list[int]:
    """Return the axes along which factors vary, given that they are compressed."""
    return [axis for axis, extent in enumerate(factors.shape) if extent > 1]


def moved(call: relax.Call, inputs: Sequence[FloatArray]) -> FloatArray | None:
    """Return the factors of what a mover makes of tensors with given factors.

    Parameters
    ----------
    call : relax.Call
        A call for which `region_operators.is_mover` holds.
    inputs : sequence of float64 arrays
        Of the tensors that it reads, in order.

    Returns
    -------
    float64 array, or None where values of different factors would meet in one place
    """
    name, factors = str(call.op.name), inputs[0]
    if name == "relax.concat":
        return _joined(call, inputs)
    if not varying_axes(factors):
        return one_factor(call, factors)
    if name in RESHAPES:
        return _reshaped(factors, call)
    if name == "relax.permute_dims":
        axes = call.attrs.axes
        return factors.transpose(None if axes is None else [int(a) for a in axes])
    if name == "relax.strided_slice":
        return _sliced(factors, call)
    if name == "relax.nn.pad":
        return _padded(factors, call)
    if name == "relax.broadcast_to":
        return factors.reshape((1,) * (len(call.ty.shape.values) - factors.ndim) + factors.shape)
    if name == "relax.tile":
        repeats = [int(times) for times in call.attrs.repeats]
        return np.tile(factors, np.where(np.asarray(factors.shape) > 1, repeats, 1))
    if name == "relax.take":
        axis = int(call.attrs.axis)
        index = call.args[1].value.numpy()
        return compressed(factors.take(index, axis)) if factors.shape[axis] > 1 else factors
    if name in ("relax.max", "relax.min"):
        return _reduced(factors, call)
    if name in ("relax.nn.max_pool2d", "relax.image.resize2d"):
        layout = str(call.attrs.layout)
        spatial = [axis for axis, letter in enumerate(layout) if letter in "HW"]
        return None if set(spatial) & set(varying_axes(factors)) else factors
    return None


def one_factor(call: relax.Call, factors: FloatArray) -> FloatArray:
    """Return the greatest of the factors, in the rank of what a call returns."""
    types = call.ty.fields if isinstance(call.ty, relax.TupleType) else [call.ty]
    return np.full((1,) * len(types[0].shape.values), factors.max())


def _joined(call: relax.Call, inputs: Sequence[FloatArray]) -> FloatArray:
    axis = int(call.attrs.axis) % inputs[0].ndim
    extents = [int(field.ty.shape.values[axis]) for field in call.args[0].fields]
    shape = [max(f.shape[i] for f in inputs) for i in range(inputs[0].ndim)]
    parts = [
        np.broadcast_to(f, [extent if i == axis else n for i, n in enumerate(shape)])
        for f, extent in zip(inputs, extents, strict=True)
    ]
    return compressed(np.concatenate(parts, axis=axis))


def _reshaped(factors: FloatArray, call: relax.Call) -> FloatArray | None:
    before, after = (list(expr.ty.shape.values) for expr in (call.args[0], call))
    if not before or not after or not _same_extent(before[0], after[0]):
        return None  # the batch is mixed with what the factors may vary along
    if not all(isinstance(extent, tvm.tirx.IntImm) for extent in (*before[1:], *after[1:])):
        return None
    whole = np.broadcast_to(factors, (1, *(int(extent) for extent in before[1:])))
    return compressed(whole.reshape((1, *(int(extent) for extent in after[1:]))))


def _same_extent(left: Any, right: Any) -> bool:
    return bool(tvm_ffi.structural_equal(left, right))


def _sliced(factors: FloatArray, call: relax.Call) -> FloatArray | None:
    if not all(isinstance(arg, relax.Tuple) for arg in call.args[1:]):
        return None
    axes, begins, ends, *strides = (
        [int(getattr(v, "value", v)) for v in arg.fields] for arg in call.args[1:]
    )
    for position, axis in enumerate(axes):
        if factors.shape[axis] > 1:
            stride = strides[0][position] if strides else 1
            index: list[Any] = [slice(None)] * factors.ndim
            index[axis] = slice(begins[position], ends[position], stride)
            factors = factors[tuple(index)]
    return compressed(factors)


def _padded(factors: FloatArray, call: relax.Call) -> FloatArray | None:
    """Give new elements the factors of what they repeat, zeros those of their neighbours."""
    widths = np.asarray([int(v) for v in call.attrs.pad_width]).reshape(-1, 2)
    varies = np.asarray(factors.shape) > 1
    mode = str(call.attrs.pad_mode)
    if mode == "constant" and float(getattr(call.attrs, "pad_value", 0.0)) != 0.0:
        return None
    widths = np.where(varies[:, None], widths, 0)
    return np.pad(factors, widths.tolist(), mode=PAD_MODES[mode])


def _reduced(factors: FloatArray, call: relax.Call) -> FloatArray | None:
    axes = [int(a) % factors.ndim for a in call.attrs.axis or range(factors.ndim)]
    if any(factors.shape[axis] > 1 for axis in axes):
        return None
    return factors if bool(call.attrs.keepdims) else np.squeeze(factors, tuple(axes))
