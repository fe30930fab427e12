"""How a session rounds weights anew, and what is refused before the slow stages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tvmquant.errors import DataError

if TYPE_CHECKING:
    from tvmquant.allocation import Plan
    from tvmquant.data import Dataset
    from tvmquant.graph import Graph
    from tvmquant.mixed_precision import Wishes
    from tvmquant.training import Recipe


def how_to_reconstruct(
    asked: bool | str | Path | Recipe,
    graph: Graph,
    data: Dataset | None,
    given: Plan | None,
    wishes: Wishes | None,
) -> Recipe | None:
    """Return how weights are rounded anew, None where they are not.

    By default as a plan says that its sensitivity was measured; where widths are chosen, as that
    will be measured.

    Raises
    ------
    DataError
        When there are no data to look at again, or the network is quantized already or has several
        inputs.
    TrainingError
        When the recipe trains, or no layer has, or may get, weights of few bits.
    """
    if asked is False:
        return None
    from tvmquant.layers import is_quantized
    from tvmquant.training import Recipe
    from tvmquant.training.reconstruct import alone, check_narrow, checked_recipe

    if data is None or is_quantized(graph):
        raise DataError(
            "weights are rounded anew by what layers compute of data: pass --data, and a float "
            "model (or --requantize); or leave --reconstruct out"
        )
    if data.fingerprint() is None:
        raise DataError(
            f"{data.name} can be read only once, and reconstruction reads what has calibrated; "
            "pass a folder, a .npy, a .npz or an array"
        )
    if len(graph.inputs) > 1:
        raise DataError(
            f"the model {graph.name!r} takes {len(graph.inputs)} inputs; networks of several are "
            "not reconstructed yet; leave --reconstruct out"
        )
    recipe = checked_recipe("adaround" if asked is True else asked)
    if asked is True and given is not None and given.reconstruction is not None:
        recipe = checked_recipe(Recipe.model_validate(given.reconstruction))
    if wishes is not None:
        check_narrow(graph, {str(choice): choice for choice in wishes.measured}, recipe)
        return alone(recipe) if asked is True else recipe
    check_narrow(graph, given.choices if given else {}, recipe)
    return recipe
