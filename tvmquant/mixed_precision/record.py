"""What is known of how a library got its bit widths: ``mixed-precision.json`` beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from tvmquant.records import load_record, save_record

if TYPE_CHECKING:
    import os

SCHEMA_VERSION: Final = 1
RECORD_NAME: Final = "mixed-precision.json"


class PlanPoint(BaseModel):
    """One plan in the space of all.

    Parameters
    ----------
    name : str
        Such as ``w4a8`` of a uniform plan, ``chosen``, or ``frontier``.
    size_bytes, bops : int
        Of the layers.
    perturbation : float
        What the plan costs, in the units of the sensitivity method.
    predicted_ms : float
    measured_ms : float, optional
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    size_bytes: int
    bops: int
    perturbation: float
    predicted_ms: float
    measured_ms: float | None = None


class LayerRecord(BaseModel):
    """One layer, in execution order.

    Parameters
    ----------
    id, op, macs, weights, outputs, group, position
        As of `tvmquant.layers.Layer`.
    choice : str
    reason : str
    perturbation, milliseconds : dict of str to float
        By choice: sensitivity, and predicted latency.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    id: str
    op: str
    macs: int
    weights: int
    outputs: int
    group: str
    position: str
    choice: str
    reason: str
    perturbation: dict[str, float]
    milliseconds: dict[str, float]


class MixedPrecisionRecord(BaseModel):
    """Everything that led to a plan, and what came of it.

    Parameters
    ----------
    schema_version : int
        1.
    model : str
        Fingerprint of the float graph.
    target : str
    threads : int
    device : str
        What measured the latencies: the processor's name, or ``rpc:KEY``.
    sensitivity : str
        Method.
    budgets : dict of str to str
        As the user wrote them, by quantity (``latency``, ``size``, ``bops``).
    fixed_ms : float
        Predicted time of what is no layer.
    layers : list of LayerRecord
    chosen : PlanPoint
        Its ``measured_ms`` is that of the shipped library.
    uniform : list of PlanPoint
        Plans with one choice wherever it is possible.
    frontier : list of PlanPoint
        Of least perturbation for a latency, in order of latency.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    target: str
    threads: int = Field(gt=0)
    device: str = ""
    sensitivity: str
    budgets: dict[str, str]
    fixed_ms: float
    layers: list[LayerRecord]
    chosen: PlanPoint
    uniform: list[PlanPoint]
    frontier: list[PlanPoint]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON; an existing file is replaced at once or not at all."""
        save_record(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MixedPrecisionRecord:
        """Read what `save` wrote.

        Raises
        ------
        DataError
            When the file is missing, not JSON, of another version, or a field is wrong.
        """
        return load_record(cls, path, "compile the model again with --force")
