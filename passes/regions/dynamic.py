"""Layers whose input is rounded by its range, found at run time: floats in, floats out.

A layer's sums of integers are real numbers again at once (equation (5) of `tvmquant.arithmetic`),
so that nothing around it needs a scale. A convolution's padding is put around its input's integers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import relax

from tvmquant.arithmetic import DYNAMIC_QMAX, INT32_MAX, Array
from tvmquant.errors import QuantizationError
from tvmquant.formats import UINT8
from tvmquant.ir import dynamic_ops as dyn
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import span_name
from tvmquant.ir.tensor_types import integers
from tvmquant.passes.accumulator import Contraction, Quantized, QuantizedWeight
from tvmquant.passes.channel_affine import CONV2D, CONV2D_TRANSPOSE, MATMUL
from tvmquant.passes.region_operators import RESHAPES, output_axis
from tvmquant.passes.regions.contraction import emitted_sums
from tvmquant.passes.regions.window_sums import emitted_window_sums, has_zero_points

if TYPE_CHECKING:
    from tvmquant.passes.insert_requantize import Integerizer

NO_PADDING = (0, 0, 0, 0)


@dataclass(frozen=True)
class Dynamic:
    """A float tensor that its readers take rounded by its range.

    Parameters
    ----------
    real : relax.Expr
        The tensor, not rounded.
    found : relax.Expr
        Its range.
    source : relax.Call
        The ``dynamic_quant``, which names its operators.
    integers : dict
        What has been emitted, by padding and layout.
    """

    real: relax.Expr
    found: relax.Expr
    source: relax.Call
    integers: dict[tuple[tuple[int, ...], str], relax.Expr] = field(default_factory=dict)

    def quantized(
        self, integerizer: Integerizer, padding: tuple[int, ...] = NO_PADDING, layout: str = ""
    ) -> relax.Expr:
        """Return the integers, between zero points where there is a padding."""
        if (padding, layout) not in self.integers:
            attrs = {"id": _id(self.source), "padding": list(padding), "layout": layout}
            args = [self.real, self.found]
            call = qop.emit(dyn.DYNAMIC_QUANTIZE, args, attrs, self.source.span)
            self.integers[padding, layout] = integerizer.emit(call, "x_q")
        return self.integers[padding, layout]

    def rounded(self, integerizer: Integerizer) -> relax.Expr:
        """Return the tensor rounded, for a reader that takes floats."""
        one = np.ones(1)
        q = self.quantized(integerizer)
        return _real_sums(integerizer, self, q, one, one, -1, self.source, _id(self.source))

    def moved(self, integerizer: Integerizer, call: relax.Call) -> Dynamic:
        """Return what an operator that moves every element gives: its range is the same."""
        args = [self.real, *call.args[1:]]
        new = relax.Call(call.op, args, call.attrs, call.ty_args, call.span)
        return Dynamic(integerizer.emit(new), self.found, self.source)


def dynamic_tensor(integerizer: Integerizer, call: relax.Call, real: relax.Expr) -> Dynamic:
    """Emit the range of what a ``dynamic_quant`` reads."""
    found = qop.emit(dyn.DYNAMIC_RANGE, [real], {"id": f"{_id(call)}.range"}, call.span)
    return Dynamic(real, integerizer.emit(found, "range"), call)


def value_of_dynamic(
    integerizer: Integerizer, call: relax.Call, values: Sequence[Any]
) -> relax.Expr | Dynamic | None:
    """Return what a call becomes that reads a dynamic tensor; None where it takes floats."""
    x = values[0]
    if not isinstance(x, Dynamic):
        return None
    if qop.is_call(call, *RESHAPES):
        return x.moved(integerizer, call)
    weight = values[1] if len(values) > 1 else None
    if qop.is_call(call, *qop.FLOAT_CONTRACTIONS) and isinstance(weight, QuantizedWeight):
        return _layer(integerizer, call, x, weight)
    return None


def _layer(
    integerizer: Integerizer, call: relax.Call, x: Dynamic, weight: QuantizedWeight
) -> relax.Expr:
    name = span_name(call)
    padding, layout = NO_PADDING, "" if qop.is_call(call, MATMUL) else "NCHW"
    if qop.is_call(call, CONV2D):
        padding = integers(call.attrs.padding)
    read = x.quantized(integerizer, padding, layout)
    held = Quantized(read, 1.0, 0, 0, DYNAMIC_QMAX, UINT8)
    layer = integerizer.scaled(Contraction(call, held, weight, dynamic=True))
    weight = layer.weight
    sums = emitted_sums(integerizer, layer, name)
    steps = weight.steps(weight.scale)
    _check_sums(layer, steps, name)
    of_windows: list[relax.Expr] = []
    if has_zero_points(weight):
        zero_point = qop.constant(np.asarray(weight.zero_point, np.int32))
        of_windows = [emitted_window_sums(integerizer, layer, name), zero_point]
    return _real_sums(
        integerizer, x, sums, _weight_sums(call, steps), weight.scale, output_axis(call), call,
        name, of_windows, layout,
    )  # fmt: skip


def _real_sums(
    integerizer: Integerizer, x: Dynamic, sums: relax.Expr, weight_sums: Array, scale: Array,
    axis: int, call: relax.Call, name: str, of_windows: Sequence[relax.Expr] = (),
    layout: str = "",
) -> relax.Expr:  # fmt: skip
    attrs = {
        "id": name, "axis": axis, "layout": layout, "low": -math.inf, "high": math.inf,
    }  # fmt: skip
    args = [
        sums, x.found, qop.constant(weight_sums.astype(np.int32)),
        qop.constant(scale.astype(np.float32)), qop.constant(np.zeros(1, np.float32)), *of_windows,
    ]  # fmt: skip
    return integerizer.emit(qop.emit(dyn.DYNAMIC_DEQUANTIZE, args, attrs, call.span), "y")


def _id(source: relax.Call) -> str:
    return str(qop.attributes(source)["id"])


def _weight_sums(call: relax.Call, steps: Array) -> Array:
    """Return the sums of the weights that meet each output: (O,), or (1, O, H, W).

    Of a convolution all do, since its padding holds zero points; of a transposed one those that lie
    over an element of the input, between which its stride puts nothing.
    """
    if not qop.is_call(call, CONV2D_TRANSPOSE):
        return np.asarray(steps.reshape(len(steps), -1).sum(axis=1))
    attrs = call.attrs
    strides, padding, dilation = map(integers, (attrs.strides, attrs.padding, attrs.dilation))
    taps = steps.sum(axis=1)
    meets = []
    for axis in range(2):
        extent, out = (int(tensor.ty.shape.values[2 + axis]) for tensor in (call.args[0], call))
        offsets = np.arange(taps.shape[1 + axis])[:, None] * dilation[axis]
        position = np.arange(out)[None, :] + padding[axis] - offsets
        inside = (position >= 0) & (position <= (extent - 1) * strides[axis])
        meets.append((inside & (position % strides[axis] == 0)).astype(np.int64))
    return np.asarray(np.einsum("oij,ih,jw->ohw", taps, *meets)[None])


def _check_sums(layer: Contraction, steps: Array, name: str) -> None:
    """Raise where sums, their corrections included, may leave 32 bits."""
    zero_point = layer.weight.zero_point
    others = np.abs(0 if zero_point is None else zero_point)
    taps = steps[0].size
    magnitudes = np.abs(steps).reshape(len(steps), -1).sum(axis=1)
    if int((2 * magnitudes + 2 * others * taps).max()) * DYNAMIC_QMAX > INT32_MAX:
        raise QuantizationError(
            f"layer {name!r}: its sums may leave 32 bits ({taps} products of {layer.weight.format} "
            "weights and of activations rounded at run time); split the layer, or leave it float"
        )
