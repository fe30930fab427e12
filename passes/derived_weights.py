"""Which weights of fewer bits follow from wider ones, by one requantization per output channel.

A layer that several bit widths share has one weight of the widest, ``q``, and of each other width::

    w = +- clip((q * M + 2**(s - 1)) >> s, -qmax, qmax)                   equation (3), of one term

with ``M`` and ``s`` per channel. Training rounds so (`tvmquant.training.shared_weights`), and what
folding a normalization does to the sign of a channel is in that of ``M`` and of the result. No
numbers of training are needed: each weight and its narrower one bound the ratio ``M / 2**s``, and
the dyadic number of fewest bits between the bounds is taken, if there is one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tvmquant.arithmetic import Array, IntArray, requantize
from tvmquant.formats import Format

# The multiplier is held in 16 bits; products with 8-bit weights and what rounds them fit 32.
LARGEST = 2**15 - 1
MOST_SHIFT = 22


@dataclass(frozen=True)
class Derivation:
    """How the weights of a layer follow from wider ones.

    Parameters
    ----------
    multiplier : int16 array (O,)
    shift : int8 array (O,)
        Negative where the result is to be negated.
    qmax : int
        Levels are symmetric.
    """

    multiplier: Array
    shift: Array
    qmax: int

    def derived(self, weight: Array) -> Array:
        """Return the narrower weight, int8, of a weight (O, K)."""
        multiplier = self.multiplier[:, None].astype(np.int64)
        shift = np.abs(self.shift[:, None].astype(np.int64))
        terms = [(weight, 0, multiplier)]
        found = requantize(terms, 0, shift, 0, -self.qmax, self.qmax, "int8")
        signed: Array = np.where(self.shift[:, None] < 0, -found, found)
        return signed


def derivation_of(wide: Array, narrow: Array, held: Format) -> Derivation | None:
    """Return how narrower weights follow from wider ones, exactly; None where they do not.

    Parameters
    ----------
    wide, narrow : integer arrays (O, K)
        Of 8 bits at most.
    held : Format
        Of the narrower.
    """
    negated = np.zeros(len(wide), bool)
    multiplier, shift = _ratios(wide, narrow, held.qmax)
    if not shift.all():
        again, other = _ratios(wide, -narrow, held.qmax)
        negated = shift == 0
        multiplier, shift = np.where(negated, again, multiplier), np.where(negated, other, shift)
    if not shift.all():
        return None
    signed = np.where(negated, -shift, shift).astype(np.int8)
    found = Derivation(multiplier.astype(np.int16), signed, held.qmax)
    return found if np.array_equal(found.derived(wide), narrow) else None


def _ratios(wide: Array, narrow: Array, qmax: int) -> tuple[IntArray, IntArray]:
    """Return a multiplier and a shift of every channel; of shift 0 where there is none.

    With ``q`` the wider weight, ``2 w - 1 <= 2 q M / 2**s < 2 w + 1``; at the ends of the range
    one side only.
    """
    sign = np.sign(wide).astype(np.int64)
    q, w = np.abs(wide.astype(np.int64)) * 2, narrow.astype(np.int64)
    # of sign * M / 2**s, times q: at least, and at most; the bounds of negative q change places,
    # and with them which of them the ratio may reach
    low, high = 2 * w - 1, 2 * w + 1
    least = np.where(sign > 0, low, -high)
    most = np.where(sign > 0, high, -low)
    has_least = (sign * narrow > -qmax) & (sign != 0)
    has_most = (sign * narrow < qmax) & (sign != 0)
    divisor = np.maximum(q, 1)
    multiplier, shift = np.zeros(len(wide), np.int64), np.zeros(len(wide), np.int64)
    open_ = np.where(sign > 0, 0, 1)  # whether the least is excluded; if it is not, the most is
    zeros_stay = ((wide != 0) | (narrow == 0)).all(axis=1)
    for s in range(1, MOST_SHIFT + 1):
        # the integers at or above, or above, the least; and below, or up to, the most
        first = -((-least << s) // divisor)
        first = np.where(open_ == 1, (least << s) // divisor + 1, first)
        last = np.where(open_ == 1, (most << s) // divisor, -((-most << s) // divisor) - 1)
        start = np.where(has_least, first, -LARGEST).max(axis=1, initial=-LARGEST)
        end = np.where(has_most, last, LARGEST).min(axis=1, initial=LARGEST)
        # of several, the one in the middle
        taken = (shift == 0) & (start <= end) & zeros_stay
        multiplier[taken], shift[taken] = ((start + end) // 2)[taken], s
        if shift.all():
            break
    return multiplier, shift
