"""Weights that are sums of a few signs, each times a magnitude per output channel.

A sum ``sum_i a_i B_i`` of M signs has ``2**(M - 1)`` magnitudes and both signs of each. Of two,
``a_1 + a_2`` and ``a_1 - a_2``. Of three, with ``a_1 >= a_2 >= a_3``, in falling order

    m1 = a_1 + a_2 + a_3, m2 = a_1 + a_2 - a_3, m3 = a_1 - a_2 + a_3, m4 = |a_1 - a_2 - a_3|

of which the last is ``|m2 + m3 - m1|``: that tells them from other weights of four magnitudes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tvmquant.arithmetic import FloatArray

# As many layers of one bit still take less time than one of 8 bits: of 3x3 windows and 128
# channels, two 0.46 and three 0.72 of it on AVX512-VNNI with VPOPCNTDQ, 0.37 and 0.59 with AVX2.
MOST_SIGNS = 3
# Of magnitudes that are one, relative to the greatest, as exporters' float32 spreads them.
SPREAD = 2.0**-18
# Fewer numbers than so many of each magnitude may have few magnitudes by chance.
LEAST_REPEATS = 4


def sums_of_signs(weight: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], FloatArray] | None:
    """Return signs and magnitudes whose products add up to a weight.

    Parameters
    ----------
    weight : float array, output channels first

    Returns
    -------
    (int64 array (M, *weight.shape), float64 array (M, O)) or None
        M is 2 or `MOST_SIGNS`; None of other weights, of which one of a single sign is.
    """
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    few = rows.shape[1] >= LEAST_REPEATS << MOST_SIGNS and bool(np.all(np.isfinite(rows)))
    # the first channel tells most weights from those
    if not few or _signs_of_row(rows[0]) is None:
        return None
    found = [_signs_of_row(row) for row in rows]
    count = max(0 if channel is None else len(channel[1]) for channel in found)
    signs = np.ones((count, *rows.shape), np.int64)
    scales = np.zeros((count, len(rows)))
    for index, channel in enumerate(found):
        if channel is None:
            return None
        signs[: len(channel[1]), index] = channel[0]
        scales[: len(channel[1]), index] = channel[1]
    if count < 2:
        return None
    return signs.reshape(count, *weight.shape), scales


def _signs_of_row(row: FloatArray) -> tuple[npt.NDArray[np.int64], FloatArray] | None:
    """Return the signs (M, K) and magnitudes (M,) of one channel; None where there are others."""
    sizes = np.abs(row)
    spread = SPREAD * sizes.max()
    levels = _levels(sizes, spread)
    if levels is None or np.any(np.bincount(levels[1]) < LEAST_REPEATS):
        return None
    values, level = levels
    sign = np.where(row < 0.0, -1, 1)
    if len(values) == 1:
        return sign[None], values
    if len(values) == 2:
        upper, lower = values
        other = np.where(level == 0, sign, -sign)
        return np.stack([sign, other]), np.array([upper + lower, upper - lower]) / 2.0
    m1, m2, m3, m4 = values
    if abs(abs(m2 + m3 - m1) - m4) > 4.0 * spread:
        return None
    inner = 1 if m2 + m3 >= m1 else -1  # the sign of a_1 - a_2 - a_3
    first = np.where(level < 3, sign, inner * sign)
    second = np.where(level < 2, sign, np.where(level == 2, -sign, -inner * sign))
    third = np.where(level % 2 == 0, sign, np.where(level == 1, -sign, -inner * sign))
    scales = np.array([m2 + m3, m1 - m3, m1 - m2]) / 2.0
    return np.stack([first, second, third]), scales


def _levels(sizes: FloatArray, spread: float) -> tuple[FloatArray, npt.NDArray[np.int64]] | None:
    """Return one, two or four magnitudes, the greatest first, and which of them each number has."""
    ordered = np.sort(sizes)[::-1]
    jumps = np.flatnonzero(ordered[:-1] - ordered[1:] > spread) + 1
    if len(jumps) not in (0, 1, 3):
        return None
    groups = np.split(ordered, jumps)
    if any(group[0] - group[-1] > 2.0 * spread for group in groups):
        return None
    values = np.array([group.mean() for group in groups])
    level = np.abs(sizes[:, None] - values).argmin(axis=1)
    return values, level
