"""The fake_quants that come with a model: their scales are kept exactly.

Activations are held as everywhere: in ``uint8`` containers whatever their sign, or in ``int16``,
their zero points moved along (`quantized_ops`). Weights are held by what they stand for in steps of
their scale, so that most have zero point 0 whatever it is in the file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax

from tvmquant.formats import (
    BINARY,
    INT8,
    INT16,
    LEAST_BITS,
    MOST_BITS,
    UBINARY,
    Format,
    Uniform,
)
from tvmquant.ir import quantized_ops as qop

Array = npt.NDArray[Any]

# Of activations that are counted from their least level on, whatever their type: kernels read their
# bits (`schedules.conv2d_binary`).
FEW_BITS = 3

KNOWN = {"scheme": "asymmetric", "group": "", "calibrated": 1, "fixed": 1}


def imported_activation(
    x: relax.Expr,
    scale: Array,
    zero_point: int,
    dtype: str,
    *,
    axis: int,
    name: str,
    ties: str = "even",
    limits: tuple[int, int] | None = None,
) -> relax.Call:
    """Return the fake_quant of an activation.

    Parameters
    ----------
    x : relax.Expr
    scale : float32 array of shape (1,), or (C,) along ``axis``
    zero_point : int
    dtype : str
        Integer type in the model, of 2 to 16 bits, such as ``"int8"``, ``"uint4"``.
    axis : int
        -1 where there is one scale.
    name : str
        Id of the fake_quant, unique in the graph.
    ties : {"even", "up"}
        How what is rounded to it rounds: as ONNX says, as exactly as can be, or as this project's
        own networks do, of which the file is one.
    limits : (int, int), optional
        Between which the integers lie; by default those of the type.
    """
    bits, low, high = integer_range(dtype)
    held = INT16 if bits > MOST_BITS else Uniform(bits, signed=False)
    offset = (int(np.iinfo(held.container).min) if held == INT16 else 0) - low
    low, high = limits or (low, high)
    if held != INT16:
        if (high - low).bit_length() <= FEW_BITS and low <= zero_point <= high:
            offset = -low
        held = Uniform(max((high + offset).bit_length(), LEAST_BITS), signed=False)
    attrs: dict[str, Any] = {
        **KNOWN,
        "ties": ties,
        "id": name,
        "role": qop.ACTIVATION,
        "format": held.name,
        "qmin": low + offset,
        "qmax": high + offset,
        "axis": axis,
        "range_of": "",
        "shares": "zero_point",
        "nonzero": 0,
        "least": 0.0,
        "greatest": 0.0,
    }
    zero = np.asarray([zero_point + offset], np.int32)
    return qop.emit(qop.FAKE_QUANT, [x, qop.constant(np.float32(scale)), qop.constant(zero)], attrs)


def imported_sign(
    x: relax.Expr,
    scale: float,
    *,
    name: str,
    strict: bool = False,
    zero_point: int = UBINARY.middle,
    span: Any = None,
) -> relax.Call:
    """Return the fake_quant that gives ``scale`` where a tensor is not below 0, else ``-scale``.

    Parameters
    ----------
    x : relax.Expr
    scale : float, > 0
    name : str
        Id of the fake_quant, unique in the graph.
    strict : bool
        Whether the middle is rounded down.
    zero_point : int
        With that of the lower level the levels are 0 and ``2 scale``, and their middle ``scale``.
    span : Span, optional
    """
    held = UBINARY
    attrs: dict[str, Any] = {
        **KNOWN,
        "ties": "even",
        "id": name,
        "role": qop.ACTIVATION,
        "format": held.name,
        "qmin": held.qmin,
        "qmax": held.qmax,
        "axis": -1,
        "range_of": "",
        "shares": "zero_point",
        "nonzero": 0,
        "least": 0.0,
        "greatest": 0.0,
        "strict": int(strict),
    }
    constants = np.asarray([scale], np.float32), np.asarray([zero_point], np.int32)
    return qop.emit(qop.FAKE_QUANT, [x, *map(qop.constant, constants)], attrs, span)


def imported_weight(
    steps: Array,
    scale: Array,
    offset: Array,
    *,
    axis: int,
    groups: int,
    name: str,
    multiplier: Array | None = None,
    group: int = 0,
) -> relax.Call:
    """Return the fake_quant of a weight.

    Parameters
    ----------
    steps : int array in the layout of the layer's weight
        Real value over scale: integers of the file minus their zero point, -255 .. 255.
    scale : float32 array of shape (1,), or (C,) along ``axis``
    offset : int array of the shape of ``scale``
        Zero point that the steps get where they do not fit 8 bits: -128 <= steps + offset <= 127.
    axis : int
        Of the output channels.
    groups : int
        Of the layer.
    name : str
        Of the layer.
    multiplier : int8 array like steps, optional
        Of the scale at each value, the same for ``group`` neighbours.
    group : int
    """
    extents = [scale.size if i == axis and scale.size > 1 else 1 for i in range(steps.ndim)]
    fits = held_by(steps)
    if multiplier is not None and fits is not None:
        fits = Uniform(max(fits.bits, LEAST_BITS), signed=True, group=group)
    zero = np.zeros(1, np.int32) if fits else offset.astype(np.int32)
    attrs: dict[str, Any] = {
        **KNOWN,
        "scheme": "symmetric" if fits else "asymmetric",
        "id": f"{name}.weight",
        "role": qop.WEIGHT,
        "format": (fits or INT8).name,
        "qmin": -1 if fits == BINARY else -(1 << ((fits or INT8).bits - 1)),
        "qmax": (fits or INT8).qmax,
        "axis": axis,
        "groups": groups,
        "bounded": 0,
    }
    values = steps.astype(np.float32) * np.float32(scale).reshape(extents)
    constants = [values, np.float32(scale), zero]
    if multiplier is not None:
        constants = [values * multiplier.astype(np.float32), *constants[1:], multiplier]
    return qop.emit(qop.FAKE_QUANT, [qop.constant(array) for array in constants], attrs)


def integer_range(dtype: str) -> tuple[int, int, int]:
    """Return the bits, the least and the greatest value of an integer type such as ``"int4"``."""
    signed = not dtype.startswith("u")
    bits = int(dtype.removeprefix("u").removeprefix("int"))
    low = -(1 << (bits - 1)) if signed else 0
    return bits, low, low + (1 << bits) - 1


def held_by(steps: Array) -> Format | None:
    """Return the narrowest format whose container holds integers; None where 8 bits do not."""
    if steps.size and np.all(np.abs(steps) == 1):
        return BINARY
    low, high = int(steps.min(initial=0)), int(steps.max(initial=0))
    for bits in range(LEAST_BITS, MOST_BITS + 1):
        if -(1 << (bits - 1)) <= low and high < 1 << (bits - 1):
            return Uniform(bits, signed=True)
    return None
