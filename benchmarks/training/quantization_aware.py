"""Networks trained at one choice of bit widths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from benchmarks.rows import Row
from benchmarks.training.common import Setting, trained_rows
from tvmquant.bit_choice import BitChoice
from tvmquant.layers import quantizable_layers, uniform_choices
from tvmquant.training import Recipe


@dataclass(frozen=True)
class Preset:
    """A choice of all layers but the ends, and the recipe that trains it."""

    choice: str
    recipe: str = "lsq"
    changes: Mapping[str, Any] = field(default_factory=dict)


# Below 4 bits; residual connections stay at 8.
NARROW: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "epochs": 5,
        "residual_bits": 8,
        "optimizer.step_lr": 0.01,
        "augmentation": {"mirror": True},
    }
)
PRESETS: Final[Mapping[str, Preset]] = MappingProxyType(
    {
        "w8a8": Preset("w8a8", changes={"epochs": 1, "optimizer.lr": 0.002}),
        "w4a4": Preset(
            "w4a4",
            changes={
                "epochs": 5,
                "residual_bits": 8,
                "objective.labels": 0.8,
                "objective.distillation": 0.1,
                "augmentation": {"shift": 2, "mirror": True},
                "optimizer.lr": 0.02,
                "optimizer.step_lr": 0.01,
            },
        ),
        "w3a3": Preset("w3a3", changes={"optimizer.lr": 0.02, **NARROW}),
        "w2a2": Preset("w2a2", changes={"optimizer.lr": 0.04, **NARROW}),
    }
)


def rows(setting: Setting, name: str) -> list[Row]:
    """Train, build and evaluate a preset."""
    preset = PRESETS[name]
    recipe = Recipe.read(preset.recipe, {**preset.changes, **setting.changes})
    layers = quantizable_layers(setting.graph)
    choices = uniform_choices(layers, BitChoice.parse(preset.choice))
    return trained_rows(setting, name, recipe, choices)[0]
