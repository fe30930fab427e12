"""The bit widths of one layer, and how they are written: ``w4a8``, ``w4a4``, ``w4a8g32``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from tvmquant.errors import QuantizationError

_NAME: Final = re.compile(r"w([0-9]+)a([0-9]+)(?:g([0-9]+))?")

WEIGHT_BITS: Final = (4, 8)
ACTIVATION_BITS: Final = (4, 8)
GROUP_SIZES: Final = (32, 64, 128)


@dataclass(frozen=True, order=True)
class BitChoice:
    """Bit widths of a layer's weight and of the activation it reads.

    Parameters
    ----------
    w_bits, a_bits : int
        4 or 8.
    w_group : int
        Weights that share a scale, neighbours in the order kernels read them (kernel column, then
        input channel); 32, 64 or 128, and 0 for one scale per output channel. Of 4-bit weights
        only.

    Raises
    ------
    QuantizationError
        When a width or a group size is none of these.

    Examples
    --------
    >>> str(BitChoice(4, 8, 32))
    'w4a8g32'
    >>> BitChoice.parse("w4a4")
    BitChoice(w_bits=4, a_bits=4, w_group=0)
    """

    w_bits: int = 8
    a_bits: int = 8
    w_group: int = 0

    def __post_init__(self) -> None:
        if self.w_bits not in WEIGHT_BITS or self.a_bits not in ACTIVATION_BITS:
            raise QuantizationError(
                f"bit choice {self}: expected weights of {_any(WEIGHT_BITS)} bits and activations "
                f"of {_any(ACTIVATION_BITS)} bits"
            )
        if self.w_group and (self.w_group not in GROUP_SIZES or self.w_bits != 4):
            raise QuantizationError(
                f"bit choice {self}: groups hold {_any(GROUP_SIZES)} weights of 4 bits"
            )

    def __str__(self) -> str:
        return f"w{self.w_bits}a{self.a_bits}" + (f"g{self.w_group}" if self.w_group else "")

    @classmethod
    def parse(cls, text: str) -> BitChoice:
        """Return the choice that a text such as ``w4a8`` names.

        Raises
        ------
        QuantizationError
            When it names none.
        """
        match = _NAME.fullmatch(text.strip().lower())
        if match is None:
            raise QuantizationError(
                f"bit choice {text!r}; expected a form such as w8a8, w4a8, w4a4 or w4a8g32"
            )
        return cls(*(int(part) for part in match.groups(default="0")))


def _any(values: tuple[int, ...]) -> str:
    return f"{', '.join(str(v) for v in values[:-1])} or {values[-1]}"


W8A8: Final = BitChoice(8, 8)
W4A8: Final = BitChoice(4, 8)
W4A4: Final = BitChoice(4, 4)
DEFAULT_CHOICES: Final = (W8A8, W4A8, W4A4)
