import pytest

from tvmquant.errors import TrainingError
from tvmquant.training import Recipe
from tvmquant.training.recipe import names


def test_every_recipe_that_comes_along_is_valid() -> None:
    assert "lsq" in names()
    for name in names():
        assert Recipe.read(Recipe.read(name)) == Recipe.read(name)


def test_a_file_is_read_and_fields_are_changed(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 7\nweights: {rounding: {shape: ewgs, delta: 0.01}}\n")
    recipe = Recipe.read(path, {"epochs": 2, "optimizer.lr": 0.5, "weights.step": "fixed"})
    assert (recipe.epochs, recipe.optimizer.lr) == (2, 0.5)
    assert (recipe.weights.rounding.shape, recipe.weights.step) == ("ewgs", "fixed")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "epoch: Extra inputs"),
        ("epochs: 0", "nothing to do: 0 epochs, and no reconstruction"),
        ("epochs: -1", "epochs: .*greater than or equal to 0"),
        ("schema_version: 2", "schema_version"),
        ("optimizer: {lr: -1}", r"optimizer\.lr: .*greater than 0"),
        ("weights: {rounding: {shape: invtanh, alpha: 2}}", "alpha of invtanh is below 2"),
        ("objective: {labels: 0, distillation: 0}", "nothing to minimise"),
        ("[1, 2]", "expected fields such as"),
        ("{", "recipe .*mine.yaml: "),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(TrainingError, match=message):
        Recipe.read(path)


def test_an_unknown_name_lists_those_that_there_are() -> None:
    with pytest.raises(TrainingError, match=r"no recipe 'lsk'; expected one of .*lsq"):
        Recipe.read("lsk")
    with pytest.raises(TrainingError, match=r"epochs\.x: epochs has no fields"):
        Recipe.read("lsq", {"epochs.x": 1})
