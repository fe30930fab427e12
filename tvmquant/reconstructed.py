"""The record of a reconstruction: how weights were rounded for the sake of the outputs."""

from __future__ import annotations

import base64
import binascii
import os
import zlib
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from tvmquant.arithmetic import Array
from tvmquant.errors import DataError
from tvmquant.records import load_record, save_record

if TYPE_CHECKING:
    from tvmquant.graph import Graph

SCHEMA_VERSION: Final = 1


class RoundedWeight(BaseModel):
    """The integers of one weight.

    Parameters
    ----------
    shape : list of int
    integers : str
        int8, the last axis fastest, compressed (zlib) and in base64.
    before, after : float
        Error of the output that was looked at, in percent of its power: rounded to the nearest,
        and now.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    shape: list[int]
    integers: str
    before: float
    after: float

    @classmethod
    def of(cls, integers: Array, before: float, after: float) -> RoundedWeight:
        """Return the record of int8 integers."""
        packed = base64.b64encode(zlib.compress(np.ascontiguousarray(integers).tobytes()))
        return cls(shape=list(integers.shape), integers=packed.decode(), before=before, after=after)

    @field_validator("integers")
    @classmethod
    def _readable(cls, text: str) -> str:
        try:
            zlib.decompress(base64.b64decode(text, validate=True))
        except (binascii.Error, zlib.error) as error:
            raise ValueError(f"is damaged ({error})") from None
        return text

    def array(self) -> Array:
        """Return the integers, int8.

        Raises
        ------
        DataError
            When they are not as many as the shape says.
        """
        found = np.frombuffer(zlib.decompress(base64.b64decode(self.integers)), np.int8)
        if found.size != int(np.prod(self.shape)):
            raise DataError(f"a rounded weight of shape {self.shape} has {found.size} integers")
        return found.reshape(self.shape)


class Reconstructed(BaseModel):
    """Weights that were rounded anew, and steps of activations that were learned with them.

    Parameters
    ----------
    schema_version : int
        1.
    model : str
        Fingerprint of the float graph.
    count : int
        Number of items.
    weights : dict of str to RoundedWeight
        By the ids of their fake_quants.
    steps : dict of str to float
        Of activations, likewise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    count: int = Field(gt=0)
    weights: dict[str, RoundedWeight]
    steps: dict[str, float] = Field(default_factory=dict)

    def check(self, graph: Graph) -> None:
        """Raise `DataError` unless it is of a float graph."""
        if self.model != graph.fingerprint():
            raise DataError(
                f"this reconstruction is of another model (fingerprint {self.model[:12]}..., this "
                f"one has {graph.fingerprint()[:12]}...); reconstruct this one"
            )

    def apply(self, annotated: Graph) -> Graph:
        """Return a calibrated graph (L1) with these integers and steps.

        Raises
        ------
        QuantizationError
            When it is of another model.
        """
        from tvmquant.passes import pipeline

        integers = {name: weight.array() for name, weight in self.weights.items()}
        return annotated.with_module(pipeline.set_rounding(annotated.module, integers, self.steps))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON; an existing file is replaced at once or not at all."""
        save_record(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Reconstructed:
        """Read what `save` wrote.

        Raises
        ------
        DataError
            When the file is missing, not JSON, of another version, or a field is wrong.
        """
        return load_record(cls, path, "reconstruct again")
