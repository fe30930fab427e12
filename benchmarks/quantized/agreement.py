"""How many integers two evaluations of one file share, and by how many steps the others differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.noise import sqnr_db
from benchmarks.quantized.tensors import QuantizedTensor, result
from benchmarks.rows import Row, RowMaker

if TYPE_CHECKING:
    from benchmarks.quantized.files import QuantizedFile

# the outputs of runs, by name
Values = Sequence[Mapping[str, NDArray[Any]]]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Integers that were compared.

    Attributes
    ----------
    numbers, differing : int
    most_steps : int
        By which two of them differ.
    """

    numbers: int = 0
    differing: int = 0
    most_steps: int = 0

    @property
    def share(self) -> float:
        """Those that are equal, in percent."""
        return 100 * (1 - self.differing / self.numbers) if self.numbers else float("nan")

    def __add__(self, other: Agreement) -> Agreement:
        """Return the agreement of the integers of both."""
        return Agreement(
            self.numbers + other.numbers,
            self.differing + other.differing,
            max(self.most_steps, other.most_steps),
        )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What one way to evaluate a file computes.

    Attributes
    ----------
    outputs : sequence of dict of str to array
        Of the file and its last integers, ``shown``.
    layers : sequence of dict of str to array
        Of every layer on its own, by `result`.
    """

    outputs: Values
    layers: Values


def compare(
    names: Mapping[str, tuple[QuantizedTensor, str, str]], reference: Values, found: Values
) -> dict[str, Agreement]:
    """Compare the dequantized values of tensors.

    Parameters
    ----------
    names : mapping of str to (QuantizedTensor, str, str)
        By the node that gives it: a tensor, and its names in `reference` and in `found`.
    reference, found : sequence of mappings
        Run by run.

    Returns
    -------
    dict of str to Agreement
        By the node that quantizes the tensor.
    """
    totals = {}
    for node, (tensor, expected, name) in names.items():
        whole = Agreement()
        for first, second in zip(reference, found, strict=True):
            difference = np.subtract(second[name], first[expected], dtype=np.float64)
            steps = np.abs(tensor.steps(difference))
            whole += Agreement(steps.size, int(np.count_nonzero(steps)), int(steps.max(initial=0)))
        totals[node] = whole
    return totals


def agreement_rows(
    make: RowMaker,
    file: QuantizedFile,
    config: str,
    evaluation: Evaluation,
    exact: Evaluation | None,
) -> Iterator[Row]:
    """Compare an evaluation of a file with the reference and, where there is one, with float64."""
    name = file.network.name
    ends = {tensor.node: (tensor, tensor.shown, tensor.shown) for tensor in file.last}
    cut = {tensor.node: (tensor, tensor.shown, result(tensor)) for tensor in file.tensors}
    both_cut = {tensor.node: (tensor, result(tensor), result(tensor)) for tensor in file.tensors}
    pairs = {
        "equal": compare(ends, file.reference, evaluation.outputs),
        "layers_equal": compare(cut, file.layer_reference, evaluation.layers),
    }
    if exact is not None and exact is not evaluation:
        pairs["float64_equal"] = compare(ends, exact.outputs, evaluation.outputs)
        pairs["float64_layers_equal"] = compare(both_cut, exact.layers, evaluation.layers)
    yield make(name, config, "works", 1.0, "", reason="")
    for metric, parts in pairs.items():
        whole = sum(parts.values(), Agreement())
        if parts:
            extra = {**dataclasses.asdict(whole), "worst": _worst(parts)}
            yield make(name, config, metric, whole.share, "%", **extra)
    ratio = worst_sqnr_db(file.outputs, file.reference, evaluation.outputs)
    yield make(name, config, "sqnr_db", ratio, "dB")


def _worst(parts: Mapping[str, Agreement]) -> str:
    """Return the tensor of the largest share of differing integers, and its figures."""
    node, found = max(parts.items(), key=lambda part: part[1].differing / max(part[1].numbers, 1))
    return f"{node}: {found.differing} of {found.numbers}, by up to {found.most_steps}"


def worst_sqnr_db(names: Iterable[str], reference: Values, found: Values) -> float:
    """Return the SQNR of the output of the lowest one, over all runs."""
    return min(
        sqnr_db(*(np.concatenate([run[name].ravel() for run in v]) for v in (reference, found)))
        for name in names
    )
