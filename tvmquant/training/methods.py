"""The methods that sections of a recipe choose."""

from __future__ import annotations

from tvmquant.training.adaptive import AdaptiveWidths
from tvmquant.training.affine import AffineCombination
from tvmquant.training.binary import Binarized
from tvmquant.training.importance import LearnedImportance
from tvmquant.training.learned_widths import LearnedWidths
from tvmquant.training.method import Method
from tvmquant.training.proximal import Proximal
from tvmquant.training.recipe import METHOD_SECTIONS, Recipe

METHODS: dict[str, type[Method]] = {
    "importance": LearnedImportance,
    "widths": LearnedWidths,
    "affine": AffineCombination,
    "proximal": Proximal,
    "adaptive": AdaptiveWidths,
    "binarization": Binarized,
}


def method_of(recipe: Recipe) -> type[Method]:
    """Return the method of the section that a recipe has, of none the plain one."""
    chosen = [METHODS[name] for name in METHOD_SECTIONS if getattr(recipe, name) is not None]
    return chosen[0] if chosen else Method
