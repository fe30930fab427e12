import pytest

from tvmquant.errors import TrainingError
from tvmquant.training import Recipe
from tvmquant.training.recipe_files import names


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
        ("epoch: 3", "epoch: there is no such field; did you mean epochs"),
        (
            "lr: 0.1",
            r"lr: .*; did you mean optimizer\.lr or reconstruction\.lr",
        ),
        ("weights: {stp: fixed}", r"weights\.stp: .*; did you mean weights\.step"),
        (
            "weights: fixed",
            r"weights: 'fixed' is no section; set its fields, such as weights\.step",
        ),
        ("epochs: 0", "nothing to do: 0 epochs, and no reconstruction"),
        ("epochs: -1", "epochs: .*greater than or equal to 0"),
        ("schema_version: 2", "schema_version"),
        ("optimizer: {lr: -1}", r"optimizer\.lr: -1: .*greater than 0"),
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


def test_a_name_goes_before_a_folder_of_that_name(tmp_path, monkeypatch) -> None:
    (tmp_path / "lsq").mkdir()
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert Recipe.read("lsq").weights.step == "learned"
    with pytest.raises(TrainingError, match="no recipe 'mine'"):
        Recipe.read("mine")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 3}, "phases: epochs is the same in all phases"),
        ({"residual_bits": 4}, "phases: residual_bits is the same"),
        ({"batch_norm": "folded"}, "phases: batch_norm: folded is the same"),
        ({"weights": {"map": "tanh"}}, r"phases: weights\.map is the same"),
        ({"affine.until": 0.5}, "phases: affine is the same"),
        ({"nothing": 3}, "phases: phase 2: nothing: there is no such field"),
        ({"optimizer.lr": 0}, r"phases: phase 2: optimizer\.lr: 0: .*greater than 0"),
    ],
)
def test_phases_change_neither_the_network_nor_the_method(changes, message) -> None:
    phases = [{"share": 0.5}, {"share": 0.5, "changes": changes}]
    with pytest.raises(TrainingError, match=message):
        Recipe.read("lsq", {"epochs": 4, "phases": phases})
