"""Observers by name: stream activations, keep fixed-size statistics, choose a range.

`tvmquant.quantizer.affine_parameters` turns a range into (scale, zero_point, qmin, qmax). Weights
need no streaming: `tvmquant.quantizer.weight_scales` works on the whole array.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from tvmquant.calibration.base import MinMaxObserver, MovingAverageObserver, Observer
from tvmquant.calibration.histogram import PercentileObserver
from tvmquant.calibration.threshold import EntropyObserver, MSEObserver
from tvmquant.errors import QuantizationError

_OBSERVERS: Mapping[str, type[Observer]] = {
    "minmax": MinMaxObserver,
    "moving_average": MovingAverageObserver,
    "percentile": PercentileObserver,
    "entropy": EntropyObserver,
    "mse": MSEObserver,
}


def make_observer(method: str, **options: Any) -> Observer:
    """Return a new observer.

    Parameters
    ----------
    method : {"minmax", "moving_average", "percentile", "entropy", "mse"}
    **options
        The keyword arguments of the observer's class, such as ``percentile=99.9``.

    Raises
    ------
    QuantizationError
        When the method or an option is unknown, or an option is out of range.

    Examples
    --------
    >>> observer = make_observer("percentile", percentile=99.9)
    >>> observer.update(np.linspace(0, 1, 1001, dtype=np.float32))
    >>> tuple(round(end, 3) for end in observer.range())
    (0.0, 0.999)
    """
    observer = _OBSERVERS.get(method)
    if observer is None:
        raise QuantizationError(
            f"calibration method {method!r} is unknown; expected one of {', '.join(_OBSERVERS)}"
        )
    known = list(inspect.signature(observer.__init__).parameters)[1:]
    if unknown := sorted(set(options) - set(known)):
        raise QuantizationError(
            f"calibration method {method!r} has no option {', '.join(unknown)}; its options are: "
            f"{', '.join(known) or 'none'}"
        )
    return observer(**options)
