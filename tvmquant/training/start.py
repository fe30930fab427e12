"""The network that a training begins with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tvmquant.quantization import apply_calibration

if TYPE_CHECKING:
    from tvmquant.bit_choice import BitChoice
    from tvmquant.calibration import Calibration
    from tvmquant.graph import Graph
    from tvmquant.training.recipe import Recipe


def start_of(
    graph: Graph, calibration: Calibration, choices: Mapping[str, BitChoice], recipe: Recipe
) -> Graph:
    """Return a float graph (L0) calibrated (L1), as a recipe has it.

    Pairs of weights are not bounded and biases not corrected: both are trained.

    Parameters
    ----------
    graph : Graph
    calibration : Calibration
        With ``fold_batch_norm`` as the recipe has it.
    choices : mapping of str to BitChoice
        As of `tvmquant.quantize`.
    recipe : Recipe

    Raises
    ------
    QuantizationError
        As of `tvmquant.quantization.apply_calibration`.
    """
    return apply_calibration(
        graph, calibration, choices=choices, residual_bits=recipe.residual_bits,
        fold_batch_norm=recipe.batch_norm == "folded", bound_pairs=False, correct_bias=False,
    )  # fmt: skip
