from types import SimpleNamespace

import pytest

from tvmquant.data import InputSpec
from tvmquant.errors import TrainingError
from tvmquant.training import Recipe
from tvmquant.training.checks import check_networks


def _graph(*shapes: tuple[int, ...]) -> SimpleNamespace:
    inputs = tuple(InputSpec(f"x{i}", shape, "float32") for i, shape in enumerate(shapes))
    return SimpleNamespace(name="net", item_inputs=lambda: inputs)


def test_networks_of_several_inputs_are_refused_before_anything_else() -> None:
    one, two = _graph((3, 8, 8)), _graph((3, 8, 8), (4,))
    check_networks(one, None, Recipe(insert_batch_norm=True))
    check_networks(one, one, Recipe())
    with pytest.raises(TrainingError, match="'net' has 2 inputs; only networks of one are trained"):
        check_networks(two, None, Recipe(insert_batch_norm=True))
    with pytest.raises(TrainingError, match=r"takes \(3, 8, 8\) and \(4,\) of an item, the model"):
        check_networks(one, two, Recipe())
    with pytest.raises(TrainingError, match="the recipe asks no teacher; leave it out"):
        check_networks(one, one, Recipe(objective={"labels": 1.0, "distillation": 0.0}))
