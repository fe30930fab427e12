"""Round the weights of each layer so that its output, not the weights, stays near.

Of a weight ``w = s (floor(w / s) + r)``, r is 0 or 1: whether it is rounded up. For each layer in
order, r is found that minimises the squared error of the layer's output on a few items, whose
inputs are those of the network quantized so far. While it is searched r is a number between,
``h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1)``, which a penalty drives to one of its ends.

Reference: Nagel et al. (2020), "Up or Down? Adaptive Rounding for Post-Training Quantization".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from tvmquant.graph import Graph
from tvmquant.progress import Progress
from tvmquant.training.checkpoint import Checkpoint
from tvmquant.training.items import Items
from tvmquant.training.recipe import Recipe, Reconstruction
from tvmquant.twin import FakeQuantize, Twin
from tvmquant.twin.fake_quantize import along_axis
from tvmquant.twin.quantizer_module import FakeSign

# Of h; the penalty's weight, and its exponent in the first and in the last step; the share of the
# steps before it begins.
STRETCH: Final = 1.2
OFFSET: Final = 0.1
PENALTY: Final = 0.01
FIRST_POWER: Final = 20.0
LAST_POWER: Final = 2.0
FREE: Final = 0.2
# Where h begins at most near its ends, beyond which it has no gradient.
MARGIN: Final = 0.01


def reconstruct(
    annotated: Graph,
    items: Items,
    recipe: Recipe,
    path: Path,
    identity: dict[str, str],
    progress: Progress | None = None,
) -> Graph:
    """Round the narrow weights of a calibrated graph anew.

    Parameters
    ----------
    annotated : Graph
        Level L1, calibrated, without bounded pairs (`tvmquant.apply_calibration`).
    items : Items
        Labels are not used.
    recipe : Recipe
        With a reconstruction; ``batch_size`` and ``seed`` are those of its steps.
    path : Path
        Of the checkpoint, written after every layer.
    identity : dict of str to str
        As of `Checkpoint`.
    progress : callable, optional
        Receives the layers done and their number.

    Returns
    -------
    Graph
        Level L1. The weights are whole numbers of their steps.
    """
    how = recipe.reconstruction
    assert how is not None
    exact, rounded = Twin(annotated.module), Twin(annotated.module, mode="quantized")
    checkpoint = Checkpoint(path, identity, {"twin": rounded})
    done = checkpoint.load()
    edges, quantizers = rounded.weight_edges, rounded.quantizers
    names = [name for name in rounded.weights if _is_narrow(quantizers[edges[name]], how)]
    for name in names[len(done) :]:
        done.append(_reconstruct(name, exact, rounded, items, recipe))
        checkpoint.save(done)
        if progress is not None:
            progress(len(done), len(names))
    return annotated.with_module(rounded.write_back())


def _is_narrow(quantizer: torch.nn.Module, how: Reconstruction) -> bool:
    if not isinstance(quantizer, FakeQuantize) or isinstance(quantizer, FakeSign):
        return False
    return int(quantizer.qmax) < 1 << (how.most_bits - 1)


def _reconstruct(
    name: str, exact: Twin, rounded: Twin, items: Items, recipe: Recipe
) -> dict[str, float]:
    """Round a layer's weight in place; return the relative errors of its output, in percent."""
    how = recipe.reconstruction
    assert how is not None
    compute, weight = rounded.contraction(name), rounded.weights[name]
    quantizer = rounded.quantizers[rounded.weight_edges[name]]
    assert isinstance(quantizer, FakeQuantize)
    scale = along_axis(quantizer.scale, weight, quantizer.axis).detach()
    if quantizer.multiplier is not None:
        scale = scale * quantizer.multiplier
    low, high = int(quantizer.qmin), int(quantizer.qmax)
    size = min(recipe.batch_size, len(items))
    with torch.no_grad():
        inputs = torch.cat(list(_inputs(rounded, name, items, size)))
        outputs = (compute(x, exact.weights[name]) for x in _inputs(exact, name, items, size))
        wanted = torch.cat(list(outputs))
        floor = torch.floor(weight / scale)
        start = (weight / scale - floor).clamp(MARGIN, 1.0 - MARGIN)
        v = -torch.log(STRETCH / (start + OFFSET) - 1.0)
    v.requires_grad_()
    optimizer = torch.optim.Adam([v], how.lr)
    random = torch.Generator().manual_seed(recipe.seed)
    power_of_output = float(wanted.pow(2).mean()) or 1.0

    def error(up: Tensor, chosen: Tensor) -> Tensor:
        found = compute(inputs[chosen], (floor + up).clamp(low, high) * scale)
        return (found - wanted[chosen]).pow(2).mean() / power_of_output

    with torch.no_grad():
        before = error(torch.round(start), torch.arange(len(items)))
    for step in range(how.steps):
        up = _rounded_up(v)
        loss = error(up, torch.randint(len(items), (size,), generator=random))
        done = (step / how.steps - FREE) / (1.0 - FREE)
        if done > 0.0:
            exponent = LAST_POWER + (FIRST_POWER - LAST_POWER) * (1.0 - done)
            loss = loss + PENALTY * (1.0 - (2.0 * up - 1.0).abs().pow(exponent)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        up = (_rounded_up(v) >= 0.5).to(v.dtype)
        after = error(up, torch.arange(len(items)))
        weight.copy_((floor + up).clamp(low, high) * scale)
    return {"before": 100.0 * float(before), "after": 100.0 * float(after)}


def _rounded_up(v: Tensor) -> Tensor:
    return (STRETCH * torch.sigmoid(v) - OFFSET).clamp(0.0, 1.0)


def _inputs(twin: Twin, name: str, items: Items, size: int) -> Iterator[Tensor]:
    """Yield what a layer is given of all items, batch by batch."""
    found: list[Tensor] = []

    def observe(layer: str, x: Tensor) -> None:
        if layer == name:
            found.append(x)

    twin.observe_input = observe
    for inputs in items.batches(size):
        twin(inputs)
        yield found.pop()
    twin.observe_input = None
