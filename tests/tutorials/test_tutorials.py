import importlib
import runpy
import sys
from pathlib import Path

import pytest

import tvmquant
from tvmquant.training import Recipe, train
from tvmquant.tuning import tune

TRIALS = 6
STEPS = 50
TUTORIALS = sorted((Path(__file__).resolve().parents[2] / "tutorials").glob("[0-9]*.py"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all tutorials run, since later ones take up what the first one left."""
    return tmp_path_factory.mktemp("tutorials")


def tune_briefly(*arguments, trials, **options):
    """Tune with some of the trials that readers are shown."""
    return tune(*arguments, trials=min(trials, TRIALS), **options)


def train_briefly(graph, data, recipe, **options):
    """Train for one of the epochs that readers are shown; round weights anew in a few steps."""
    recipe = Recipe.read(recipe)
    changes = {"epochs": 1} if recipe.epochs else {"reconstruction.steps": STEPS}
    return train(graph, data, Recipe.read(recipe, changes), **options)


@pytest.mark.usefixtures("brief_timing", "brief_tuning")
@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(tutorial, folder, monkeypatch, capsys):
    """In this process: importing everything anew would take as long as the tutorials."""
    # the package's name for the module is the function
    monkeypatch.setattr(importlib.import_module("tvmquant.tuning.tune"), "tune", tune_briefly)
    monkeypatch.setattr(tvmquant, "train", train_briefly, raising=False)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(tutorial)])
    runpy.run_path(str(tutorial), run_name="__main__")
    assert capsys.readouterr().out


def test_they_are_numbered_without_gaps():
    assert [path.name[:2] for path in TUTORIALS] == [f"{i + 1:02}" for i in range(len(TUTORIALS))]
