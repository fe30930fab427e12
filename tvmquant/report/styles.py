"""How each bit choice looks, the same in every report: by colour, and by pattern and symbol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


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


# Blue, teal, orange and purple remain distinct in the common kinds of colour blindness; patterns
# and symbols repeat the distinction for print without colour.
_STYLES: Final = {
    "w8a8": Style("#2f5f9e", "", "circle"),
    "w8a4": Style("#0b7a75", ".", "pentagon"),
    "w4a8": Style("#b85c00", "/", "square"),
    "w4a8g128": Style("#8f4a06", "\\", "triangle-up"),
    "w4a8g64": Style("#a0660f", "-", "triangle-down"),
    "w4a8g32": Style("#7a5c1a", "|", "triangle-left"),
    "w4a4": Style("#9c2f7f", "x", "diamond"),
    "w4a4g128": Style("#7d2a8f", "+", "star-diamond"),
    "w4a4g64": Style("#5f2f8f", "-", "star"),
    "w4a4g32": Style("#4a2a70", "|", "hexagon"),
}
OTHER: Final = Style("#7b8490", "", "circle")


def style_of(choice: str) -> Style:
    """Return the style of a choice, or that of what has none."""
    return _STYLES.get(choice, OTHER)
