"""The record of a calibration: the range of every activation edge, for which model and data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import numpy as np
import tvm
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator
from tvm import relax

from tvmquant.errors import DataError
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of
from tvmquant.records import load_record, save_record

if TYPE_CHECKING:
    from tvmquant.graph import Graph

SCHEMA_VERSION: Final = 3

Factor = Annotated[float, Field(gt=0.0, le=1.0)]


class EdgeRange(BaseModel):
    """The range of one edge.

    Parameters
    ----------
    lo, hi : float
        In real units, finite, lo <= hi.
    method : str
        The observer that chose it.
    samples : int
        Number of values seen, > 0.
    narrow : dict of int to (float, float)
        The range to use for a narrower bit width, where the observer's choice depends on it.
    factors : list of float
        Of each channel's scale, in (0, 1]; empty where the tensor has one scale
        (`tvmquant.calibration.equalization`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    lo: float
    hi: float
    method: str
    samples: int = Field(gt=0)
    narrow: dict[int, tuple[float, float]] = Field(default_factory=dict)
    factors: list[Factor] = Field(default_factory=list)

    @model_validator(mode="after")
    def _ordered(self) -> EdgeRange:
        for lo, hi in ((self.lo, self.hi), *self.narrow.values()):
            if lo > hi:
                raise ValueError(f"lo = {lo} exceeds hi = {hi}")
        return self

    def range(self, bits: int = 8) -> tuple[float, float]:
        """Return the range (lo, hi) for a bit width."""
        return self.narrow.get(bits, (self.lo, self.hi))


class Calibration(BaseModel):
    """The ranges that calibration chose; a small JSON file, the same for any bit widths.

    Parameters
    ----------
    schema_version : int
        3.
    model : str
        `model_fingerprint` of the annotated graph.
    data : str, optional
        Fingerprint of the data, None where they could be read only once.
    count : int
        Number of items (images) seen, > 0.
    edges : dict of str to EdgeRange
        By the id of the ``fake_quant``.
    input_means : dict of str to list of float
        Mean of each input channel of every convolution and dense layer, by the layer's name.
    input_powers : dict of str to list of float
        Their mean squares.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[3] = SCHEMA_VERSION
    model: str
    data: str | None
    count: int = Field(gt=0)
    edges: dict[str, EdgeRange]
    input_means: dict[str, list[FiniteFloat]]
    input_powers: dict[str, list[FiniteFloat]]

    def ranges(self, bits: Mapping[str, int] | None = None) -> dict[str, tuple[float, float]]:
        """Return the range (lo, hi) of every edge, by its id.

        Parameters
        ----------
        bits : dict of str to int, optional
            Bit widths by edge; 8 where not named.
        """
        widths = bits or {}
        return {name: edge.range(widths.get(name, 8)) for name, edge in self.edges.items()}

    def factors(self) -> dict[str, list[float]]:
        """Return the factors of the edges that have a scale for each channel, by their ids."""
        return {name: edge.factors for name, edge in self.edges.items() if edge.factors}

    def check_model(self, graph: Graph) -> None:
        """Raise `DataError` unless this is the calibration of an annotated graph."""
        expected = model_fingerprint(graph)
        if self.model != expected:
            raise DataError(
                f"this calibration belongs to another model (fingerprint {self.model[:12]}..., "
                f"this model has {expected[:12]}...); calibrate this model"
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the record as JSON; an existing file is replaced at once or not at all.

        Raises
        ------
        DataError
            When the file cannot be written.
        """
        save_record(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read a record that `save` wrote.

        Raises
        ------
        DataError
            When the file is missing, not JSON, of another version, or a field is wrong; names the
            field and its value.
        """
        return load_record(cls, path, "calibrate again")


def model_fingerprint(graph: Graph) -> str:
    """Return a digest of what a graph computes in float, and of its edges' ids.

    Two graphs with the same fingerprint have the same activations. Bit widths, schemes and scales
    do not enter, so that a calibration serves every quantization of a model.

    Parameters
    ----------
    graph : Graph
        Annotated (L1).

    Returns
    -------
    str
        SHA-256 in hexadecimal digits, equal in every process.
    """
    return graph.once(_model_fingerprint)


def _model_fingerprint(graph: Graph) -> str:
    function = graph.main
    numbers: dict[Any, int] = {}
    constants: dict[Any, str] = {}

    def token(expr: Any) -> str:
        if expr in numbers:
            return f"%{numbers[expr]}"
        if isinstance(expr, tvm.ir.GenericConst):
            if expr not in constants:
                constants[expr] = _array_digest(expr.value.numpy())
            return constants[expr]
        if isinstance(expr, relax.Tuple):
            return f"({','.join(token(field) for field in expr.fields)})"
        if isinstance(expr, relax.TupleGetItem):
            return f"{token(expr.tuple_value)}[{expr.index}]"
        if qop.is_call(expr, qop.FAKE_QUANT):
            return f"fake_quant({token(expr.args[0])},{qop.attributes(expr)['id']})"
        if isinstance(expr, relax.Call):
            arguments = ",".join(token(argument) for argument in expr.args)
            return f"{getattr(expr.op, 'name', expr.op)}({arguments}|{expr.attrs})"
        return str(expr)

    digest = hashlib.sha256()
    for parameter in function.params:
        numbers[parameter] = len(numbers)
        digest.update(f"{parameter.ty}\n".encode())
    for var, value in bindings_of(function):
        digest.update(f"{token(value)}\n".encode())
        numbers[var] = len(numbers)
    digest.update(token(function.body.body).encode())
    return digest.hexdigest()


def _array_digest(array: np.ndarray[Any, Any]) -> str:
    content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return f"{array.dtype}{array.shape}{content}"
