"""``plan.json``: the bit widths of every layer, to be read and edited by people."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator

from tvmquant.bit_choice import BitChoice
from tvmquant.errors import AllocationError, QuantizationError
from tvmquant.records import load_record, save_record

if TYPE_CHECKING:
    import os

    from tvmquant.allocation.allocate import Allocation
    from tvmquant.layers import Layer

SCHEMA_VERSION: Final = 1


class PlannedLayer(BaseModel):
    """What one layer takes.

    Parameters
    ----------
    choice : str
        Such as ``w4a8``; this is what to edit.
    reason : str
        Why; not read.
    locked : bool
        Whether the user asked for this choice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    choice: str
    reason: str = ""
    locked: bool = False

    @field_validator("choice")
    @classmethod
    def _known(cls, text: str) -> str:
        try:
            return str(BitChoice.parse(text))
        except QuantizationError as error:
            raise ValueError(str(error)) from None


class Plan(BaseModel):
    """Bit widths of a model.

    Parameters
    ----------
    schema_version : int
        1.
    model : str
        Name.
    fingerprint : str
        Of the float graph.
    target : str
    threads : int
    sensitivity : str
        Method; empty for a plan that nothing measured.
    budgets : dict of str to str
        As the user wrote them.
    reconstruction : dict, optional
        Fields of the recipe (`tvmquant.Recipe`) by which weights were rounded anew before the
        sensitivity was measured.
    predicted : dict of str to float
        ``latency`` in milliseconds, ``size`` in bytes, ``bops``, ``perturbation``.
    layers : dict of str to PlannedLayer
        By the name of the ONNX node, in execution order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    fingerprint: str
    target: str = ""
    threads: int = Field(default=1, gt=0)
    sensitivity: str = ""
    budgets: dict[str, str] = Field(default_factory=dict)
    reconstruction: dict[str, Any] | None = None
    predicted: dict[str, FiniteFloat] = Field(default_factory=dict)
    layers: dict[str, PlannedLayer]

    @classmethod
    def from_allocation(cls, allocation: Allocation, **facts: Any) -> Plan:
        """Return the plan of an allocation; the facts are this class's other fields."""
        layers = {
            name: PlannedLayer(
                choice=str(choice),
                reason=allocation.reasons[name],
                locked=name in allocation.pinned,
            )
            for name, choice in allocation.choices.items()
        }
        predicted = {**allocation.totals, "perturbation": allocation.perturbation}
        return cls(predicted=predicted, layers=layers, **facts)

    @property
    def choices(self) -> dict[str, BitChoice]:
        """The choice of every layer."""
        return {name: BitChoice.parse(layer.choice) for name, layer in self.layers.items()}

    def check(self, layers: Sequence[Layer], fingerprint: str) -> None:
        """Refuse a plan that does not fit a model.

        Parameters
        ----------
        layers : sequence of Layer
            Of the model.
        fingerprint : str
            Of its float graph.

        Raises
        ------
        AllocationError
            When the plan is of another model, names a layer that the model has not, leaves one out,
            or gives one a choice for which it has no kernel, or tied layers different widths.
        """
        known = {layer.id: layer for layer in layers}
        for name in self.layers:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise AllocationError(
                    f"the plan names the layer {name!r}, which the model has not{hint}"
                )
        if missing := [name for name in known if name not in self.layers]:
            raise AllocationError(
                f"the plan has no choice for {len(missing)} layers: {', '.join(missing)}"
            )
        if self.fingerprint != fingerprint:
            raise AllocationError(
                f"the plan was made for another model ({self.model!r}, fingerprint "
                f"{self.fingerprint[:12]}...; this one has {fingerprint[:12]}...) with layers of "
                "the same names; make a plan for this model"
            )
        choices = self.choices
        first: dict[str, str] = {}
        for name, layer in known.items():
            if not layer.allows(choices[name]):
                raise AllocationError(
                    f"the plan gives layer {name!r} ({layer.op}) {choices[name]}, for which there "
                    f"is no kernel; expected {layer.expected}"
                )
            other = first.setdefault(layer.group, name)
            if choices[other].activation != choices[name].activation:
                raise AllocationError(
                    f"the plan gives layers {other!r} {choices[other]} and {name!r} "
                    f"{choices[name]}, but they read the same activation; give both the same "
                    "activation width"
                )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON; an existing file is replaced at once or not at all."""
        save_record(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan, perhaps edited by hand.

        Raises
        ------
        DataError
            When the file is missing, not JSON, of another version, or a field is wrong; names the
            layer and the value.
        """
        return load_record(cls, path, "mend it, or make the plan again")
