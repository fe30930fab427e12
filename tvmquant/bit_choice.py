"""What one layer's weight and the activation it reads hold: ``w4a8``, ``w6a6``, ``w4a8g32``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from tvmquant import default_choices
from tvmquant.errors import QuantizationError
from tvmquant.formats import BINARY, INT8, UBINARY, UINT8, WIDTHS, Format, Uniform

_NAME: Final = re.compile(r"w([0-9]+)a([0-9]+)(?:g([0-9]+))?")


@dataclass(frozen=True)
class BitChoice:
    """The formats of a layer's weight and of the activation that it reads.

    Written ``w4a8g32``: weights of 4 bits, activations of 8, weights in groups of 32. Every width
    from 1 to 8 bits is one, of either; of 1 bit, they are -1 and 1 (`formats.Binary`), of 2 bits
    weights are -1, 0 and 1. Groups are of weights of 2 to 4 bits.

    Parameters
    ----------
    weight, activation : Format

    Examples
    --------
    >>> str(BitChoice(Uniform(4, signed=True, group=32), UINT8))
    'w4a8g32'
    >>> BitChoice.parse("w6a5").activation.qmax
    31
    """

    weight: Format = INT8
    activation: Format = UINT8

    def __post_init__(self) -> None:
        # the program looks choices up in tables a million times
        object.__setattr__(self, "_hash", hash((self.weight, self.activation)))

    def __hash__(self) -> int:
        found: int = self.__dict__["_hash"]
        return found

    def __str__(self) -> str:
        group = f"g{self.weight.group}" if self.weight.group else ""
        return f"w{self.weight.bits}a{self.activation.bits}{group}"

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
                f"bit choice {text!r}; expected a form such as w8a8, w4a8, w6a6 or w4a8g32"
            )
        w_bits, a_bits, group = (int(part) for part in match.groups(default="0"))
        if not {w_bits, a_bits} <= {1, *WIDTHS}:
            raise QuantizationError(
                f"bit choice {text!r}: expected weights and activations of 1 to {WIDTHS[-1]} bits"
            )
        if w_bits == 1 and group:
            raise QuantizationError(f"bit choice {text!r}: weights of 1 bit have no groups")
        activation = UBINARY if a_bits == 1 else Uniform(a_bits, signed=False)
        if w_bits == 1:
            return cls(BINARY, activation)
        try:
            return cls(Uniform(w_bits, signed=True, group=group), activation)
        except QuantizationError as error:
            raise QuantizationError(f"bit choice {text!r}: {error}") from None

    @property
    def narrowness(self) -> tuple[int, int, int]:
        """What choices are listed by, from the widest to the narrowest.

        Fewer weights that share a multiplier cost more bits each; 0 stands for a whole channel.
        """
        return -self.weight.bits, -self.activation.bits, self.weight.group


W8A8: Final = BitChoice.parse("w8a8")
W4A8: Final = BitChoice.parse("w4a8")
W4A4: Final = BitChoice.parse("w4a4")
DEFAULT_CHOICES: Final = tuple(map(BitChoice.parse, default_choices.NAMES))
