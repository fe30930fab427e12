"""How much each number of a block's output matters to what the network predicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tvmquant.errors import TrainingError
from tvmquant.graph import Graph
from tvmquant.sensitivity.loss import choose_loss
from tvmquant.sensitivity.structure import ends_of
from tvmquant.training.items import Items
from tvmquant.twin import Twin
from tvmquant.twin.blocks import Block


def output_fisher(
    twin: Twin, graph: Graph, blocks: Sequence[Block], items: Items, size: int, seed: int
) -> dict[int, Tensor]:
    """Return the diagonal of the Fisher information with respect to outputs of blocks.

    Parameters
    ----------
    twin : Twin
        In the mode "float".
    graph : Graph
        The twin's, level L0 or L1.
    blocks : sequence of Block
    items : Items
    size : int
        Of batches.
    seed : int
        Of the random vectors, one for each item (`tvmquant.sensitivity.loss.Loss.probe`).

    Returns
    -------
    dict of int to tensor
        By the slots of outputs: like the output of one item, its mean over all, divided by what it
        is on average.

    Raises
    ------
    TrainingError
        When no output of the network holds real values.
    """
    random = torch.Generator().manual_seed(seed)
    ends = ends_of(graph.module)
    squares: dict[int, Tensor] = {}
    values: dict[int, Tensor] = {}

    def shown(slot: int) -> Callable[[Tensor], Tensor]:
        def show(x: Tensor) -> Tensor:
            values[slot] = x if x.requires_grad else x.detach().requires_grad_()
            return values[slot]

        return show

    twin.replace_value = {block.output: shown(block.output) for block in blocks}
    try:
        for x in items.batches(size):
            result = twin(x)
            outputs = result if isinstance(result, tuple) else (result,)
            scores, vectors = [], []
            for end, output in zip(ends, outputs, strict=True):
                if output.is_floating_point() and output.requires_grad:
                    loss = choose_loss("auto", end, output)
                    scores.append(loss.values(output))
                    vectors.append(loss.probe(scores[-1], random))
            if not scores:
                raise TrainingError(
                    f"{graph.name}: fisher: no output of the network holds real values; set "
                    "reconstruction.fisher to false"
                )
            gradients = torch.autograd.grad(
                scores, list(values.values()), vectors, allow_unused=True, materialize_grads=True
            )
            for slot, gradient in zip(values, gradients, strict=True):
                found = gradient.square().sum(0)
                squares[slot] = squares[slot] + found if slot in squares else found
    finally:
        twin.replace_value = {}
    return {slot: square / (square.mean() or 1.0) for slot, square in squares.items()}
