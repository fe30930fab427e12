"""Signal-to-quantization-noise ratio of two results."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvmquant.output_quality import decibels, signal_and_noise


def sqnr_db(reference: NDArray[Any], found: NDArray[Any]) -> float:
    """Return ``10 log10(sum(reference^2) / sum((reference - found)^2))``, in float64.

    Infinite where the two are equal, minus infinite where shapes differ or a number is not finite.
    """
    if reference.shape != found.shape or not np.isfinite(found).all():
        return -math.inf
    return decibels(*signal_and_noise(reference, found))
