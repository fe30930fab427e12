"""Exponentials and what is made of them, float32, as arithmetic that LLVM vectorises.

LLVM knows no vector of ``expf``, ``tanhf`` or ``erff``: it calls the C library once for every
element (2.3, 5 and 11 ns; as arithmetic on AVX-512 0.1 ns each). The polynomial is that of S.
Moshier's Cephes library (``expf``), the rational minimax approximations (``tanh``, ``erf``) are
those of Eigen. The largest error is 4 units in the last place, of ``erf`` in that of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

_LOG2_E = 1.44269504088896341
# ln 2 as a number of few bits, whose products are exact, and the rest
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
        5.0000001201e-1)  # fmt: skip
# beyond, the result is zero, or infinite
_EXP_RANGE = (-104.0, 89.0)
# of the normal numbers
_LEAST_EXPONENT = -87.33
_TANH_RANGE = 7.90531110763549805
_TANH = (
    (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
     1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03),
    (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03),
)  # fmt: skip
_ERF_RANGE = 4.0
_ERF = (
    (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
     -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02),
    (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
     -1.42647390514189e-02),
)  # fmt: skip


def constant(value: float, like: tirx.PrimExpr) -> tirx.PrimExpr:
    """Return a float32 with as many lanes as ``like``."""
    return _constant(value, "float32", _lanes(like))


def exp(x: tirx.PrimExpr) -> tirx.PrimExpr:
    """Return e to the power of a float32 value or vector; 0 and infinity where that overflows.

    With n = round(x / ln 2) and r = x - n ln 2, ``2**n (1 + r + r**2 P(r))``; 2**n is the product
    of two powers, each of which a float32 can hold.
    """
    low, high = (constant(bound, x) for bound in _EXP_RANGE)
    mantissa, n = _mantissa_and_exponent(tirx.min(tirx.max(x, low), high))
    half = n >> _constant(1, "int32", _lanes(x))
    return mantissa * _power_of_two(half) * _power_of_two(n - half)


def exp_below_zero(x: tirx.PrimExpr) -> tirx.PrimExpr:
    """Return e to the power of a float32 value or vector of at most 0, at least about 2**-126.

    As `exp`, with a single power of two.
    """
    mantissa, n = _mantissa_and_exponent(tirx.max(x, constant(_LEAST_EXPONENT, x)))
    return mantissa * _power_of_two(n)


def sigmoid(x: tirx.PrimExpr) -> tirx.PrimExpr:
    """Return ``1 / (1 + exp(-x))``."""
    one = constant(1.0, x)
    return one / (one + exp(constant(0.0, x) - x))


def tanh(x: tirx.PrimExpr) -> tirx.PrimExpr:
    """Return the hyperbolic tangent."""
    return _odd_quotient(_TANH, _TANH_RANGE, x)


def erf(x: tirx.PrimExpr) -> tirx.PrimExpr:
    """Return the error function."""
    return _odd_quotient(_ERF, _ERF_RANGE, x)


_FUNCTIONS: dict[str, Callable[[tirx.PrimExpr], tirx.PrimExpr]] = {
    "tirx.exp": exp,
    "tirx.sigmoid": sigmoid,
    "tirx.tanh": tanh,
    "tirx.erf": erf,
}


def expand_functions(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Return a function that calls none of these functions of the C library on float32."""

    def expanded(call: Any) -> Any:
        replacement = _FUNCTIONS.get(str(getattr(call.op, "name", "")))
        if replacement is None or str(call.ty.dtype) != "float32":
            return call
        return replacement(call.args[0])

    body = tvm_ffi.structural_map(function.body, [(tvm.ir.Call, expanded)], order="post")
    return function.with_body(body)


def _lanes(x: tirx.PrimExpr) -> int:
    return int(tvm.DataType(str(x.ty.dtype)).lanes)


def _constant(value: float, dtype: str, lanes: int) -> tirx.PrimExpr:
    scalar = tirx.const(value, dtype)
    return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)


def _mantissa_and_exponent(x: tirx.PrimExpr) -> tuple[tirx.PrimExpr, tirx.PrimExpr]:
    """Return m and n of ``exp(x) == m * 2**n``, m near 1."""
    lanes = _lanes(x)
    steps = tirx.floor(x * constant(_LOG2_E, x) + constant(0.5, x))
    r = x - steps * constant(_LN2_HIGH, x) - steps * constant(_LN2_LOW, x)
    return _polynomial((*_EXP, 1.0, 1.0), r), steps.astype(_vector_type("int32", lanes))


def _power_of_two(n: tirx.PrimExpr) -> tirx.PrimExpr:
    lanes = _lanes(n)
    bits = (n + _constant(127, "int32", lanes)) << _constant(23, "int32", lanes)
    return tirx.reinterpret(_vector_type("float32", lanes), bits)


def _vector_type(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def _polynomial(coefficients: Sequence[float], x: tirx.PrimExpr) -> tirx.PrimExpr:
    """Evaluate a polynomial, highest power first, by Horner's rule."""
    total = constant(coefficients[0], x)
    for coefficient in coefficients[1:]:
        total = total * x + constant(coefficient, x)
    return total


def _odd_quotient(
    coefficients: tuple[Sequence[float], Sequence[float]], bound: float, x: tirx.PrimExpr
) -> tirx.PrimExpr:
    """Return ``x P(x**2) / Q(x**2)`` of x within +-bound."""
    x = tirx.max(tirx.min(x, constant(bound, x)), constant(-bound, x))
    numerator, denominator = (_polynomial(c, x * x) for c in coefficients)
    return x * numerator / denominator
