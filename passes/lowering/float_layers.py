"""Float convolutions and dense layers with what follows them in the same kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of, count_uses, used_vars
from tvmquant.ir.tensor_types import dtype_of, static_shape
from tvmquant.schedules.epilogue import FloatEpilogue


@dataclass(frozen=True)
class FloatLayer:
    """A contraction with what follows it in the same kernel.

    Parameters
    ----------
    call : Call
        The convolution or matmul.
    inside : tuple of Var
        What the kernel computes on its way to its result, which no other call reads.
    bias : array or None
    residual : Var or None
    low, high : float
        Bounds of the clip.
    """

    call: relax.Call
    inside: tuple[relax.Var, ...] = ()
    bias: Any = None
    residual: relax.Var | None = None
    low: float = -math.inf
    high: float = math.inf

    @property
    def clips(self) -> bool:
        """Whether the layer already ends in a clip."""
        return self.low > -math.inf or self.high < math.inf

    @property
    def epilogue(self) -> FloatEpilogue:
        """What the kernel does to an accumulator with its bias."""
        return FloatEpilogue(self.low, self.high, self.residual is not None)


def _absorb(layer: FloatLayer, var: relax.Var, value: relax.Call) -> FloatLayer | None:
    """Return the layer with the one call that reads its result ``var``, or None if it cannot be."""
    inside = (*layer.inside, var)
    if layer.clips:
        return None
    if qop.is_call(value, "relax.nn.relu"):
        return replace(layer, inside=inside, low=0.0)
    if qop.is_call(value, "relax.clip"):
        low, high = (float(bound.value) for bound in value.args[1:])
        return replace(layer, inside=inside, low=low, high=high)
    if not qop.is_call(value, "relax.add") or layer.residual is not None:
        return None
    constant = qop.constant_array(value.args[1])
    if constant is not None:
        channels = static_shape(var)[-1]
        one_per_channel = constant.size == channels and constant.shape[-1:] == (channels,)
        if layer.bias is not None or not one_per_channel:
            return None
        return replace(layer, inside=inside, bias=constant.reshape(-1))
    other = value.args[0] if value.args[1].same_as(var) else value.args[1]
    same = isinstance(other, relax.Var) and static_shape(other) == static_shape(var)
    return replace(layer, inside=inside, residual=other) if same else None


def plan_layers(function: relax.Function) -> dict[relax.Var, FloatLayer]:
    """Return every layer by the variable of its result."""
    values = dict(bindings_of(function))
    uses = count_uses(function)
    reader = {
        var: result
        for result, value in values.items()
        if isinstance(value, relax.Call)
        for var in used_vars(value)
        if uses[var] == 1
    }
    layers: dict[relax.Var, FloatLayer] = {}
    taken: set[relax.Var] = set()
    for var, value in values.items():
        weight = value.args[1] if qop.is_call(value, *qop.FLOAT_CONTRACTIONS) else None
        array = qop.constant_array(weight)
        if array is None or dtype_of(var) != "float32":
            continue
        if qop.is_call(value, "relax.nn.conv2d_transpose"):
            continue  # overlapping windows: TVM's legalization computes them
        if qop.is_call(value, "relax.matmul") and array.ndim != 2:
            continue  # one weight per item of a batch, or a vector
        layer, result = FloatLayer(value), var
        while result in reader and reader[result] not in taken:
            longer = _absorb(layer, result, values[reader[result]])
            if longer is None:
                break
            layer, result = longer, reader[result]
        layers[result] = layer
        taken.update((*layer.inside, result))
    return layers
