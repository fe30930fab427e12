"""Parts of a network that get one tensor and give one: layers alone, or stretches of several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tvmquant.twin.program import Key, Program, Step, flat

# A stretch of more layers falls into these.
MOST_LAYERS: Final = 10


@dataclass(frozen=True)
class Block:
    """Steps that compute one value of another.

    Parameters
    ----------
    steps : tuple of Step
        In order, with those that compute what they read of constants alone.
    input, output : int
        Slots.
    layers : tuple of str
        Convolutions and dense layers among the steps, by the names of their ONNX nodes.
    """

    steps: tuple[Step, ...]
    input: int
    output: int
    layers: tuple[str, ...]

    @property
    def name(self) -> str:
        """The first layer, and the last where there are several."""
        first, last = self.layers[0], self.layers[-1]
        return first if first == last else f"{first} to {last}"

    def compute(
        self, value: Any, constants: Mapping[str, Any], step_of: Callable[[Step, list[Any]], Any]
    ) -> Any:
        """Return the output.

        Parameters
        ----------
        value : tensor
            The input.
        constants : mapping of str to tensor
        step_of : callable (step, operands) -> value
        """
        values = {self.input: value}
        for step in self.steps:
            operands = [constants[k] if isinstance(k, str) else values[k] for k in step.operands]
            values[step.result] = step_of(step, operands)
        return values[self.output]


def layer_blocks(program: Program) -> list[Block]:
    """Return every layer alone, from what it reads to what it adds up, without a bias."""
    return [block for block in _Parts(program).layers() if block is not None]


def widest_blocks(program: Program) -> list[Block]:
    """Return stretches between points where a single tensor is alive, else layers alone.

    A stretch begins where a tensor is rounded for a layer, and has at least one layer: residual
    blocks, branches up to their concat. What follows the last layer of the network, and what is
    before the first such point, is no part of a stretch.
    """
    parts = _Parts(program)
    stretches = list(parts.stretches())
    owner = {layer: block for block in stretches for layer in block.layers}
    alone = {block.layers[0]: block for block in parts.layers() if block is not None}
    found = [owner.get(layer, alone.get(layer)) for layer in parts.names()]
    return list({id(block): block for block in found if block is not None}.values())


class _Parts:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.maker = {step.result: step for step in program.steps}
        self.data = set(range(len(program.inputs)))
        for step in program.steps:
            if any(key in self.data for key in step.operands):
                self.data.add(step.result)

    def names(self) -> Iterator[str]:
        """Yield the layers in order."""
        yield from (step.layer for step in self.program.steps if step.layer)

    def layers(self) -> Iterator[Block | None]:
        """Yield each layer alone; None where it reads no tensor of the batch, or two."""
        for step in self.program.steps:
            read = [key for key in step.operands if isinstance(key, int) and key in self.data]
            if step.layer:
                yield self._block([step], read[0], step.result) if len(read) == 1 else None

    def stretches(self) -> Iterator[Block]:
        """Yield what lies between neighbouring cuts, of at most so many layers."""
        cuts = list(self._cuts())
        begin = 0
        for index, (end, _) in enumerate(cuts):
            steps = self._between(cuts[begin][0], end)
            count = sum(bool(step.layer) for step in steps)
            if 0 < count <= MOST_LAYERS:
                yield self._block(steps, cuts[begin][1], cuts[index][1])
            begin = index if count else begin

    def _cuts(self) -> Iterator[tuple[int, int]]:
        """Yield steps that begin a stretch, and the only tensor that is alive before them."""
        steps = self.program.steps
        last: dict[Key, int] = {}
        for index, step in enumerate(steps):
            last.update((key, index) for key in step.operands if key in self.data)
        last.update((key, len(steps)) for key in flat(self.program.result))
        made = set(range(len(self.program.inputs)))
        for index, step in enumerate(steps):
            if step.result not in self.data:
                continue
            begins = step.layer or (step.edge is not None and step.edge.is_activation)
            alive = [slot for slot in made if last.get(slot, -1) >= index]
            if begins and len(alive) == 1:
                yield index, alive[0]
            made.add(step.result)

    def _between(self, begin: int, end: int) -> list[Step]:
        return [step for step in self.program.steps[begin:end] if step.result in self.data]

    def _block(self, steps: list[Step], start: int, end: int) -> Block:
        whole: dict[int, Step] = {}
        for step in steps:
            for needed in self._of_constants(step):
                whole[needed.result] = needed
            whole[step.result] = step
        layers = tuple(step.layer for step in steps if step.layer)
        return Block(tuple(whole.values()), start, end, layers)

    def _of_constants(self, step: Step) -> Iterator[Step]:
        """Yield the steps, in order, that compute what a step reads of constants alone."""
        for key in step.operands:
            if isinstance(key, int) and key not in self.data:
                yield from self._of_constants(self.maker[key])
                yield self.maker[key]
