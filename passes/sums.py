"""The scale of results that are kept as the sums that make them, in 32 bits."""

from __future__ import annotations

import numpy as np

from tvmquant.arithmetic import FloatArray
from tvmquant.passes.accumulator import Accumulator
from tvmquant.passes.region_operators import along, output_axis
from tvmquant.passes.regions.contraction import dot_span

# What sums, with what is added to them, stay below.
BITS = 30


def scale_of_sums(region: Accumulator) -> tuple[int, FloatArray]:
    """Return the finest scale in which the sums of a region fit 32 bits.

    It is that of its integers over a power of two, so that nothing of them is rounded; a bias is
    rounded to it.

    Parameters
    ----------
    region : Accumulator

    Returns
    -------
    axis : int
        -1 where there is one scale.
    scale : float64 array of shape (1,) or (C,)
    """
    first, *others = region.terms
    bound, axis = first.bound, -1
    unit = np.abs(first.scale)
    if first.contraction is not None:
        layer = first.contraction
        axis = output_axis(layer.call)
        span = dot_span(layer.weight.steps(layer.weight.scale), layer.x)
        bound = along(np.maximum(*np.abs(span)), axis, unit.ndim)
    largest = unit * bound + np.abs(region.bias)
    for term in others:
        largest = largest + np.abs(term.scale) * term.bound
    if axis < 0:
        unit, largest = unit.max(), largest.max()
    unit, largest = np.broadcast_arrays(unit, largest)
    unit = np.where(unit > 0.0, unit, 1.0)
    _, exponent = np.frexp(np.maximum(largest, unit) / unit)
    scale = np.ldexp(unit, exponent - BITS).reshape(-1)
    return axis, scale.astype(np.float32).astype(np.float64)
