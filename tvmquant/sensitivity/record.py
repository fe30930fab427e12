"""The record of an estimate: the perturbation of every layer under every choice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from tvmquant.bit_choice import BitChoice
from tvmquant.errors import SensitivityError
from tvmquant.records import load_record, save_record

if TYPE_CHECKING:
    import os

SCHEMA_VERSION: Final = 2


class LayerSensitivity(BaseModel):
    """One layer.

    Parameters
    ----------
    weight, activation : dict of str to float
        Perturbation by quantizing the weight alone and the activation alone, by the name of the
        format (``int8``, ``int4g32``, ``uint8``), the latter shared out among the layers that read
        it.
    trace : float, optional
        Of the Hessian with respect to the weight (``hessian``), or of the Fisher information
        (``fisher``).
    standard_error : float, optional
        Of the trace.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weight: dict[str, float]
    activation: dict[str, float]
    trace: float | None = None
    standard_error: float | None = None


class Sensitivity(BaseModel):
    """What `tvmquant.sensitivity.estimate_sensitivity` found.

    Parameters
    ----------
    schema_version : int
        2.
    method : str
    model, data : str, optional
        Fingerprints; of data that can be read only once there is none.
    count : int
        Items seen.
    labelled : bool
        Whether the loss was that of labels, instead of the model's own predictions.
    losses : list of str
        Of each output of real values; see `tvmquant.sensitivity.loss`.
    probes : int
        Random vectors for each item (``hessian`` and ``fisher``), 0 where there is no chance.
    tolerance : float
        What `relative_error` was to be.
    relative_error : float, optional
        The greatest relative standard error of a trace, for these data; None without probes.
    converged : bool
        Whether the tolerance was reached.
    layers : dict of str to LayerSensitivity
        By the name of the ONNX node.
    perturbation : dict of str to (dict of str to float)
        Omega by layer and choice: what `tvmquant.allocation.allocate` takes.
    excluded : dict of str to list of str
        Choices by layer that are not to be taken, as what was learned of them is no measure.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[2] = SCHEMA_VERSION
    method: str
    model: str
    data: str | None
    count: int = Field(gt=0)
    labelled: bool
    losses: list[str]
    probes: int = Field(ge=0)
    tolerance: float = Field(gt=0)
    relative_error: float | None
    converged: bool
    layers: dict[str, LayerSensitivity]
    perturbation: dict[str, dict[str, float]]
    excluded: dict[str, list[str]] = Field(default_factory=dict)

    @property
    def choices(self) -> tuple[BitChoice, ...]:
        """All choices that it knows of some layer."""
        names = dict.fromkeys(name for row in self.perturbation.values() for name in row)
        return tuple(map(BitChoice.parse, names))

    def check(self, model: str, choices: Sequence[BitChoice]) -> None:
        """Refuse what is of another model, or knows none of some choices.

        Parameters
        ----------
        model : str
            Fingerprint of the float graph.
        choices : sequence of BitChoice

        Raises
        ------
        SensitivityError
        """
        if self.model != model:
            raise SensitivityError(
                f"this sensitivity ({self.method}) is of another model, fingerprint "
                f"{self.model[:12]}..., and this one has {model[:12]}...; estimate or learn it for "
                "this model"
            )
        known = self.choices
        if unknown := [choice for choice in choices if choice not in known]:
            raise SensitivityError(
                f"this sensitivity ({self.method}) does not know {_listed(unknown)}; choose among "
                f"{_listed(known)} (--choices), or learn it at these widths too"
            )

    def digest(self) -> str:
        """Return what tells it from others."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON; an existing file is replaced at once or not at all."""
        save_record(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Sensitivity:
        """Read what `save` wrote.

        Raises
        ------
        DataError
            When the file is missing, not JSON, of another version, or a field is wrong.
        """
        return load_record(cls, path, "estimate again")


def _listed(choices: Sequence[BitChoice]) -> str:
    return ", ".join(map(str, choices))
