"""How each bit choice looks, the same in every report: by colour, and by pattern and symbol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tvmquant.bit_choice import BitChoice
from tvmquant.errors import QuantizationError


@dataclass(frozen=True)
class Style:
    """Appearance of a choice.

    Parameters
    ----------
    colour : str
        Dark enough for white text on it.
    pattern : str
        Of bars, as plotly names it; empty for a plain one.
    symbol : str
        Of points, as plotly names it.
    """

    colour: str
    pattern: str
    symbol: str


# Weights tell the colour and activations the symbol. Blue, teal, orange and purple remain distinct
# in the common kinds of colour blindness; patterns and symbols repeat the distinction for print
# without colour: choices of one width for both differ in all three.
_COLOURS: Final = {
    8: "#2f5f9e", 7: "#1d6a8c", 6: "#0b7a75", 5: "#5f6f1a", 4: "#b85c00", 3: "#a33b3b",
    2: "#9c2f7f", 1: "#3d434b",
}  # fmt: skip
_PATTERNS: Final = ("", "/", "\\", "x", "-", "|", ".")
_GROUPED: Final = "+"
_BINARY: Final = "+"
_SYMBOLS: Final = {
    8: "circle", 7: "square", 6: "pentagon", 5: "hexagon", 4: "diamond", 3: "star", 2: "cross",
    1: "x",
}  # fmt: skip
# What groups of so many weights add to the symbol.
_OPEN: Final = {0: "", 128: "-open", 64: "-dot", 32: "-open-dot"}
OTHER: Final = Style("#7b8490", "", "circle")


def style_of(choice: str) -> Style:
    """Return the style of a choice, or that of what has none."""
    try:
        taken = BitChoice.parse(choice)
    except QuantizationError:
        return OTHER
    weight, read = taken.weight, taken.activation
    place = (8 - weight.bits) + 3 * (8 - read.bits)
    pattern = _GROUPED if weight.group else _PATTERNS[place % len(_PATTERNS)]
    if weight.bits == read.bits == 1:
        pattern = _BINARY
    return Style(_COLOURS[weight.bits], pattern, _SYMBOLS[read.bits] + _OPEN[weight.group])
