"""Budgets as users write them: ``0.8x``, ``12ms``, ``1.2MB``, ``2.5G``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from tvmquant.errors import AllocationError

_TEXT: Final = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Z\u00b5\u03bc]*)\s*")
# Units of each quantity, and how many milliseconds, bytes or bit operations they are.
UNITS: Final[dict[str, dict[str, float]]] = {
    "latency": {"us": 1e-3, "\u00b5s": 1e-3, "\u03bcs": 1e-3, "ms": 1.0, "s": 1e3},
    "size": {
        "": 1.0, "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9,
        "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30,
    },
    "bops": {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12},
}  # fmt: skip
EXAMPLES: Final = {"latency": "12ms", "size": "1.2MB", "bops": "2.5G"}


@dataclass(frozen=True)
class Budget:
    """The most that a plan may take of a quantity.

    Parameters
    ----------
    quantity : str
        ``latency``, ``size`` or ``bops``.
    value : float
        In milliseconds, bytes or bit operations; or, where relative, a share of what uniform w8a8
        takes.
    relative : bool
    """

    quantity: str
    value: float
    relative: bool = False

    @classmethod
    def parse(cls, text: str, quantity: str) -> Budget:
        """Return the budget that a text means.

        Parameters
        ----------
        text : str
            A share of uniform w8a8 such as ``0.8x``, or an amount with a unit of `UNITS`.
        quantity : str
            ``latency``, ``size`` or ``bops``.

        Raises
        ------
        AllocationError
            When the text is neither, or not positive.

        Examples
        --------
        >>> Budget.parse("800us", "latency")
        Budget(quantity='latency', value=0.8, relative=False)
        """
        match = _TEXT.fullmatch(text)
        units = UNITS[quantity]
        if match is not None:
            number, unit = float(match.group(1)), match.group(2)
            known = {name.lower(): scale for name, scale in units.items()}
            scale = 1.0 if unit.lower() == "x" else units.get(unit, known.get(unit.lower()))
            if scale is not None and 0.0 < number < math.inf:
                return cls(quantity, number * scale, relative=unit.lower() == "x")
        names = ", ".join(name for name in units if name.isascii() and name)
        raise AllocationError(
            f"{quantity} budget {text!r} is not understood; expected a share of uniform w8a8 such "
            f"as 0.8x, or an amount such as {EXAMPLES[quantity]} (units: {names})"
        )

    def limit(self, reference: float) -> float:
        """Return the absolute limit, given what uniform w8a8 takes."""
        return self.value * reference if self.relative else self.value


def format_amount(quantity: str, value: float) -> str:
    """Return an amount with its unit, as `Budget.parse` reads it."""
    if quantity == "latency":
        return f"{value:.4g}ms" if value >= 1.0 else f"{value * 1e3:.4g}us"
    scales = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    if quantity == "size":
        scales = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
    for scale, unit in scales:
        if value >= scale:
            return f"{value / scale:.4g}{unit}"
    return f"{value:.4g}{'B' if quantity == 'size' else ''}"
