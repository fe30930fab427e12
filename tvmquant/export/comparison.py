"""How far an exported model is from the library: rounding by rounding, and from end to end.

One integer that differs changes all that follow from it, so that from end to end little is equal of
a deep network whose every rounding is. So each is compared by itself: the model is cut where it
rounds, and reads the library's own integers behind every cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmquant.export.cuts import cut_model, exposing, given_name
from tvmquant.export.model import Exported
from tvmquant.export.runtime import Array, Run, open_model
from tvmquant.passes.accumulator import Quantized
from tvmquant.simulator import simulate

Item = Sequence[Array]


@dataclass
class Steps:
    """How many integers were compared, and how they differ.

    Attributes
    ----------
    count, unequal : int
    largest : int
        The greatest difference, in steps.
    """

    count: int = 0
    unequal: int = 0
    largest: int = 0

    def add(self, difference: Array) -> None:
        """Take in differences in steps."""
        steps = np.abs(np.rint(difference))
        self.count += steps.size
        self.unequal += int(np.count_nonzero(steps))
        self.largest = max(self.largest, int(steps.max(initial=0)))

    @property
    def equal(self) -> float:
        """The share of equal integers; 1 where there are none."""
        return 1.0 - self.unequal / self.count if self.count else 1.0


@dataclass
class OutputSteps:
    """An output from end to end.

    Attributes
    ----------
    steps : Steps, optional
        None where the output is not quantized.
    signal, noise : float
        Sums of squares of the library's results, and of what the model's differ from them.
    """

    steps: Steps | None
    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: Array, found: Array, scale: Array | None) -> None:
        """Take in the results of an item."""
        wide, difference = reference.astype(np.float64), found.astype(np.float64) - reference
        self.signal += float(np.square(wide).sum())
        self.noise += float(np.square(difference).sum())
        if self.steps is not None and scale is not None:
            self.steps.add(np.rint(found / scale) - np.rint(reference / scale))

    @property
    def sqnr_db(self) -> float:
        """Ratio of signal to noise; infinite without noise."""
        if self.noise == 0.0:
            return math.inf
        return 10.0 * math.log10(self.signal / self.noise) if self.signal else -math.inf


@dataclass
class Comparison:
    """What was found.

    Attributes
    ----------
    runtime : str
        What ran the exported model, its graph optimizations off.
    items : int
    roundings : dict of str to Steps
        Of the integers that each rounding gives where all that it follows from is equal, by id.
    outputs : dict of str to OutputSteps
        From end to end.
    """

    runtime: str
    items: int = 0
    roundings: dict[str, Steps] = field(default_factory=dict)
    outputs: dict[str, OutputSteps] = field(default_factory=dict)

    @property
    def rounding(self) -> Steps:
        """All roundings together."""
        parts = self.roundings.values()
        return Steps(
            sum(part.count for part in parts),
            sum(part.unequal for part in parts),
            max((part.largest for part in parts), default=0),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what is known as a mapping that is valid JSON: an infinite ratio is None."""
        return {
            "runtime": self.runtime,
            "items": self.items,
            "rounding": {**asdict(self.rounding), "equal": self.rounding.equal},
            "roundings": {name: asdict(steps) for name, steps in self.roundings.items()},
            "outputs": {
                name: {
                    "steps": None if output.steps is None else asdict(output.steps),
                    "sqnr_db": output.sqnr_db if math.isfinite(output.sqnr_db) else None,
                }
                for name, output in self.outputs.items()
            },
        }


def compare(exported: Exported, items: Iterable[Item]) -> Comparison:
    """Run an exported model and the exact integers side by side.

    Parameters
    ----------
    exported : Exported
    items : iterable of sequences of arrays
        An array for each input.
    """
    graph, edges = exported.graph, exported.edges
    exact = exposing(graph.module, edges)
    runtime, whole = open_model(exported.model)
    cut = _open_cut(exported)
    scales = _scales_of_outputs(exported)
    found = Comparison(
        runtime,
        roundings={edge.id: Steps() for edge in edges},
        outputs={
            name: OutputSteps(None if scale is None else Steps()) for name, scale in scales.items()
        },
    )
    for item in items:
        feeds = dict(zip(graph.input_names, item, strict=True))
        results = simulate(exact, *item)
        computed = whole(feeds)
        for (name, scale), reference in zip(scales.items(), results, strict=False):
            found.outputs[name].add(reference, computed[name], scale)
        given = dict(zip((e.value for e in edges), results[len(scales) :], strict=True))
        rounded = cut(feeds | {given_name(name): value for name, value in given.items()})
        for edge in edges:
            difference = rounded[edge.value] - given[edge.value]
            found.roundings[edge.id].add(difference / edge.scales)
        found.items += len(item[0])
    return found


def _open_cut(exported: Exported) -> Run:
    """Return what computes each rounding by itself; without any, there is nothing to compute."""
    values = [edge.value for edge in exported.edges]
    return open_model(cut_model(exported.model, values))[1] if values else lambda _feeds: {}


def _scales_of_outputs(exported: Exported) -> dict[str, npt.NDArray[np.float64] | None]:
    """Return the scales of each output as they broadcast against it; None of what is float."""
    graph, scales = exported.graph, {}
    body = graph.main.body.body
    results = list(getattr(body, "fields", [body]))
    for name, result in zip(graph.output_names, results, strict=True):
        held = exported.held.get(result)
        scales[name] = held.scales if isinstance(held, Quantized) else None
    return scales
