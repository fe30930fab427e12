"""Networks of one bit, made of the float network by a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from benchmarks.rows import Row
from benchmarks.training.common import Setting, trained_rows
from tvmquant.training import Recipe

RECIPES: Final = ("reactnet", "bnn")
# The same of both: in few epochs many small steps change more signs. Products of -1 and 1 are exact
# in bfloat16.
CHANGES: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "epochs": 4,
        "batch_size": 32,
        "precision": "bfloat16",
        "augmentation": {"mirror": True},
    }
)


def rows(setting: Setting, name: str) -> list[Row]:
    """Train, build and evaluate a recipe; the ends are of 8 bits."""
    recipe = Recipe.read(name, {**CHANGES, **setting.changes})
    return trained_rows(setting, name, recipe, {})[0]
