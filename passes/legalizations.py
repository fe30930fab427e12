"""Legalizations that TVM's own pass lacks on processors: sums and products of all before.

TVM dispatches CumSum and CumProd in a pass of its own, which wants a target around it; on a
processor both are the serial loop of its operator library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import relax, topi

Legalization = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]


def _scan(function: Callable[..., Any]) -> Legalization:
    def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        attrs = call.attrs
        return builder.call_te(function, call.args[0], attrs.axis, attrs.dtype, attrs.exclusive)

    return legalize


# By operators, for `relax.transform.LegalizeOps`.
LEGALIZATIONS: dict[str, Legalization] = {
    "relax.cumsum": _scan(topi.cumsum),
    "relax.cumprod": _scan(topi.cumprod),
}
