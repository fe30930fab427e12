"""How close a library's outputs stay to the float model's: each by itself, and part by part.

A figure of a whole output hides the parts that it joins: of a detector whose boxes are numbers of
hundreds and whose scores lie below 1, it is that of the boxes, even where all scores are lost.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvmquant.errors import DataError
from tvmquant.output_blocks import Block

Array = NDArray[Any]

# Below so many decibels an output, or a part of one, is worth a warning.
POOR_DB = 15.0


@dataclasses.dataclass(frozen=True)
class BlockQuality:
    """What an evaluation found of a part of an output.

    Attributes
    ----------
    name : str
        Of the ONNX node that computes the part.
    sqnr_db : float
        Against the float model; infinite where equal.
    constant : float, optional
        The one value that the library gives everywhere, where the float model's values vary.
    """

    name: str
    sqnr_db: float
    constant: float | None = None

    @property
    def is_poor(self) -> bool:
        """Whether it is worth a warning."""
        return self.constant is not None or self.sqnr_db < POOR_DB

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a mapping that is valid JSON: a ratio that is infinite is None."""
        return {
            "name": self.name,
            "sqnr_db": self.sqnr_db if math.isfinite(self.sqnr_db) else None,
            "constant": self.constant,
        }


@dataclasses.dataclass(frozen=True)
class OutputQuality(BlockQuality):
    """What an evaluation found of an output.

    Attributes
    ----------
    blocks : tuple of BlockQuality
        Its parts, where a concat joins several.
    """

    blocks: tuple[BlockQuality, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a mapping that is valid JSON."""
        return {**super().to_dict(), "blocks": [block.to_dict() for block in self.blocks]}


def poor_outputs(outputs: Sequence[OutputQuality]) -> Iterator[str]:
    """Yield a warning for every output, or part of one, that is far from the float model's."""
    for output in outputs:
        parts = [block for block in output.blocks if block.is_poor]
        for block in parts:
            yield f"{block.name!r}, a part of output {output.name!r}: {_verdict(block)}"
        if output.is_poor and not parts:
            yield f"output {output.name!r}: {_verdict(output)}"


def _verdict(quality: BlockQuality) -> str:
    if quality.constant is not None:
        return (
            f"its values are all {quality.constant:g}, while the float model's vary; nothing of it "
            "is left in integers"
        )
    return (
        f"SQNR is only {quality.sqnr_db:.1f} dB; check the calibration data and their "
        "preprocessing, try --calibration-method minmax, or give layers of few bits more"
    )


class OutputMeter:
    """Running sums over the outputs of batches, in memory that does not grow.

    Parameters
    ----------
    names : sequence of str
        Of the outputs; empty where they are not known.
    blocks : sequence of sequence of Block, optional
        The parts of each output, as `find_blocks` returns them.
    """

    def __init__(
        self, names: Sequence[str], blocks: Sequence[Sequence[Block]] | None = None
    ) -> None:
        self._names = tuple(names)
        self._blocks = blocks
        self._whole: list[_Sums] = []
        self._parts: list[list[_Sums]] = []

    def add(self, references: Sequence[Array], results: Sequence[Array]) -> None:
        """Take in the outputs of a batch.

        Raises
        ------
        DataError
            When their number or shapes differ.
        """
        if len(references) != len(results):
            raise DataError(
                f"{len(results)} outputs against {len(references)} of the reference; expected "
                "equally many"
            )
        if not self._whole:
            self._whole = [_Sums() for _ in results]
            self._parts = [[_Sums() for _ in self._blocks_of(i)] for i in range(len(results))]
        for index, (reference, result) in enumerate(zip(references, results, strict=True)):
            self._whole[index].add(reference, result)
            for sums, block in zip(self._parts[index], self._blocks_of(index), strict=True):
                sums.add(block.of(reference), block.of(result))

    def qualities(self) -> tuple[OutputQuality, ...]:
        """Return what was found of each output."""
        return tuple(
            OutputQuality(
                self._name(index),
                sums.sqnr_db,
                sums.constant,
                tuple(
                    BlockQuality(block.name, part.sqnr_db, part.constant)
                    for part, block in zip(self._parts[index], self._blocks_of(index), strict=True)
                ),
            )
            for index, sums in enumerate(self._whole)
        )

    def _blocks_of(self, index: int) -> Sequence[Block]:
        return () if self._blocks is None else self._blocks[index]

    def _name(self, index: int) -> str:
        return self._names[index] if index < len(self._names) else f"output {index}"


class _Sums:
    """Signal, noise and extremes of one output, or of a part of it."""

    def __init__(self) -> None:
        self._signal = self._noise = 0.0
        self._reference = self._result = (math.inf, -math.inf)

    def add(self, reference: Array, result: Array) -> None:
        signal, noise = signal_and_noise(reference, result)
        self._signal += signal
        self._noise += noise
        if reference.size:
            self._reference = _extended(self._reference, reference)
            self._result = _extended(self._result, result)

    @property
    def sqnr_db(self) -> float:
        return decibels(self._signal, self._noise)

    @property
    def constant(self) -> float | None:
        low, high = self._result
        varies = self._reference[0] < self._reference[1]
        return low if low == high and varies else None


def _extended(extremes: tuple[float, float], array: Array) -> tuple[float, float]:
    return min(extremes[0], float(array.min())), max(extremes[1], float(array.max()))


def signal_and_noise(reference: Array, result: Array) -> tuple[float, float]:
    """Return the sums of squares of a reference and of what a result differs from it, in float64.

    Raises
    ------
    DataError
        When the shapes differ.
    """
    if reference.shape != result.shape:
        raise DataError(
            f"a result of shape {result.shape} against a reference of {reference.shape}; expected "
            "equal shapes"
        )
    wide = reference.astype(np.float64)
    return float(np.square(wide).sum()), float(np.square(wide - result).sum())


def decibels(signal: float, noise: float) -> float:
    """Return the ratio of two energies in decibels; infinite where there is no noise."""
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf
