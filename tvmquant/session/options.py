"""How to calibrate and to round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvmquant.machine import Machine


@dataclass(frozen=True)
class Options:
    """How to calibrate and to round; None stands for the default of the stage.

    Parameters
    ----------
    calibration_method, percentile
        As of `tvmquant.calibrate`. A percentile alone selects that method.
    activation_scheme, weight_method, strict
        As of `tvmquant.quantize`.
    bound_pairs : bool, optional
        As of `tvmquant.quantize`; by default where the processor's sums of two products saturate.
    dynamic, residual_bits
        As of `tvmquant.quantize`.
    """

    calibration_method: str | None = None
    percentile: float | None = None
    activation_scheme: str | None = None
    weight_method: str | None = None
    bound_pairs: bool | None = None
    strict: bool = False
    dynamic: bool = False
    residual_bits: int | None = None

    @property
    def observer(self) -> dict[str, Any]:
        """Method and options of the observer."""
        method = self.calibration_method or ("percentile" if self.percentile is not None else None)
        return _given(method=method, percentile=self.percentile)

    @property
    def calibration(self) -> dict[str, Any]:
        """Arguments of `tvmquant.calibrate`."""
        return {**self.observer, **_given(activation_scheme=self.activation_scheme)}

    def rounding(self, machine: Machine) -> dict[str, Any]:
        """Return the arguments of `tvmquant.quantize` for a machine, but for ``strict``."""
        from tvmquant.schedules.isa import multiplies_in_pairs

        bounded = self.bound_pairs
        if bounded is None:
            bounded = multiplies_in_pairs(machine.target)
        options = _given(
            weight_method=self.weight_method, activation_scheme=self.activation_scheme,
            dynamic=self.dynamic or None, residual_bits=self.residual_bits,
        )  # fmt: skip
        return {**options, "bound_pairs": bounded}

    def check(self) -> None:
        """Raise what the stages would, before the slow ones begin."""
        from tvmquant.calibration import make_observer
        from tvmquant.quantizer import check_scheme, check_weight_method

        if self.activation_scheme is not None:
            check_scheme(self.activation_scheme)
        if self.weight_method is not None:
            check_weight_method(self.weight_method)
        if self.observer:
            make_observer(**self.observer)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
