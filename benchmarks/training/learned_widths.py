"""A network whose bit widths were learned, beside a uniform one of its size.

Both are trained alike, but for what the recipe of learned widths says of them: as many epochs, the
same optimizer and images, and no residual connections of other widths. Sizes are what the integers
take, as shares of 8 bits for each: of all weights, and of all activations of an item between its
operators. Uniform choices leave the ends at 8 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

import tvmquant
from benchmarks.rows import Row
from benchmarks.training.common import BATCH, MODEL, Setting, trained_rows
from tvmquant import formats
from tvmquant.bit_choice import BitChoice
from tvmquant.formats import MOST_BITS, channel_widths
from tvmquant.graph import Graph
from tvmquant.layers import quantizable_layers, uniform_choices
from tvmquant.training import Recipe
from tvmquant.twin import Twin
from tvmquant.twin.fake_quantize import along_axis
from tvmquant.twin.quantizer_module import FakeQuantize

RECIPE: Final = "fdqmp"
# What training begins with.
START: Final = "w4a4"
# What the result is beside, of which the last is trained.
UNIFORM: Final = ("w4a4", "w3a3")
CHANGES: Final[Mapping[str, Any]] = MappingProxyType(
    {"epochs": 5, "optimizer.lr": 0.02, "augmentation": {"mirror": True}}
)
# Of the learned one: the network has been trained in float already.
LEARNED: Final[Mapping[str, Any]] = MappingProxyType(
    {
        **CHANGES,
        "phases": [
            {"share": 0.3, "changes": {"widths.stage": "learn"}},
            {"share": 0.7, "changes": {"widths.stage": "tune", "optimizer.step_lr": 0.01}},
        ],
    }
)
# Of the uniform one, whose steps learn at any time.
STEADY: Final[Mapping[str, Any]] = MappingProxyType({**CHANGES, "optimizer.step_lr": 0.01})


def rows(setting: Setting) -> list[Row]:
    """Train, build and evaluate, and say what the integers take."""
    layers = quantizable_layers(setting.graph)
    choices = {name: uniform_choices(layers, BitChoice.parse(name)) for name in UNIFORM}
    learned = Recipe.read(RECIPE, {**LEARNED, **setting.changes})
    found, trained = trained_rows(setting, RECIPE, learned, choices[START])
    name = UNIFORM[-1]
    common = {field: x for field, x in setting.changes.items() if not field.startswith("widths")}
    steady = Recipe.read("lsq", {**STEADY, **common})
    found += trained_rows(setting, f"uniform-{name}", steady, choices[name])[0]
    calibration = tvmquant.calibrate(setting.graph, setting.training_images(BATCH))
    networks = {RECIPE: trained.graph} | {
        f"uniform-{name}": tvmquant.apply_calibration(setting.graph, calibration, choices=chosen)
        for name, chosen in choices.items()
    }
    for name, network in networks.items():
        found_shares = shares(network, setting.test.inputs[:1])
        for what, share in zip(("weights", "activations"), found_shares, strict=True):
            found.append(setting.make(MODEL, f"size-{name}", f"{what}_of_w8a8", 100.0 * share, "%"))
    return found


def shares(annotated: Graph, item: Tensor) -> tuple[float, float]:
    """Return what weights and activations of a calibrated graph (L1) take, over 8 bits for each.

    Weights take the least width that each output channel fits, activations that of their format.

    Parameters
    ----------
    annotated : Graph
    item : tensor (1, ...)
        Any input.
    """
    twin = Twin(annotated.module, mode="quantized")
    counts: dict[str, int] = {}

    def observe(name: str, x: Tensor) -> None:
        counts[name] = x.numel()

    twin.observe = observe
    with torch.inference_mode():
        twin(item)
    weights = activations = taken = held = 0
    of_weights = set(twin.weight_edges.values())
    for edge in twin.edges:
        bits, count = formats.parse(edge.format).bits, counts[edge.id]
        if edge.is_activation and bits <= MOST_BITS:
            activations, held = activations + count, held + bits * count
        elif edge.id in of_weights:
            weights += count
    for layer, name in twin.weight_edges.items():
        quantizer, weight = twin.quantizers[name], twin.weights[layer].detach()
        assert isinstance(quantizer, FakeQuantize)
        step = along_axis(quantizer.scale, weight, quantizer.axis)
        if quantizer.multiplier is not None:
            step = step * quantizer.multiplier
        integers = torch.round(quantizer(weight) / step).movedim(max(quantizer.axis, 0), 0)
        widths = channel_widths(integers.to(torch.int8).numpy())
        taken += int(widths.sum()) * (weight.numel() // len(widths))
    return taken / (MOST_BITS * weights), held / (MOST_BITS * activations)
