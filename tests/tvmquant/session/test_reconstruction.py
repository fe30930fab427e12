"""Weights that `compile` rounds anew are those of the library, whoever opens it."""

import json
import shutil

import numpy as np
import pytest

import tvmquant
from tests.tvmquant.training import small
from tvmquant.cli.output import warn_nearest
from tvmquant.compilation import compile_onnx
from tvmquant.errors import DataError, TrainingError
from tvmquant.layers import quantizable_layers, uniform_choices
from tvmquant.passes import pipeline
from tvmquant.session import reopen
from tvmquant.training import Recipe, train
from tvmquant.training.reconstruct import LayerRounder, alone

QUICK = Recipe.read("adaround", {"reconstruction.steps": 20, "reconstruction.lr": 0.1})


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    return small.export(tmp_path_factory.mktemp("model") / "small.onnx", batch_norm=False)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(path, small.data(48)[0])
    return path


def _compile(onnx, images, out, **options):
    given = {"choice": "w3a8", "reconstruct": QUICK, "threads": 1, **options}
    return compile_onnx(onnx, images, out=out, **given)


@pytest.fixture(scope="module")
def library(onnx, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("library") / "out"
    return out, _compile(onnx, images, out)


def _outputs(graph):
    integer = graph.with_module(pipeline.integerize(graph.module), "L2")
    return tvmquant.simulate(integer, small.data(8, seed=1)[0])[0]


def test_what_is_rounded_anew_is_built_and_opened_again(library, onnx) -> None:
    out, done = library
    assert all(w.after < w.before for w in done.reconstruction.weights.values())
    reopened = reopen(out, model=onnx).annotated
    found = tvmquant.load(out)
    wanted = np.concatenate([found(x[None]) for x in small.data(8, seed=1)[0]])
    np.testing.assert_array_equal(_outputs(reopened), wanted)
    assert not list(out.glob("*.pt"))


def test_it_is_what_a_training_that_only_reconstructs_finds(library, onnx, images, tmp_path):
    graph = tvmquant.load_onnx(onnx)
    choice = tvmquant.BitChoice.parse("w3a8")
    choices = uniform_choices(quantizable_layers(graph), choice)
    trained = train(graph, images, QUICK, out=tmp_path, choices=choices)
    np.testing.assert_array_equal(_outputs(trained.graph), _outputs(reopen(library[0]).annotated))


def test_it_is_taken_from_an_earlier_run(library, onnx, images, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    shutil.copytree(library[0], out)
    monkeypatch.setattr("tvmquant.training.reconstruct.round_anew", None)
    for found in (_compile(onnx, images, out), _compile(onnx, images, out, force=True)):
        assert found.reconstruction == library[1].reconstruction
    assert not found.up_to_date
    (record,) = out.glob("reconstruction-*.json")
    record.unlink()
    with pytest.raises(DataError, match=r"reconstruction-.*compile the model again with --force"):
        _compile(onnx, images, out)


def test_an_interrupted_search_goes_on(library, onnx, images, tmp_path, monkeypatch) -> None:
    from tvmquant.training.checkpoint import Checkpoint

    def killed(self, *arguments):
        save(self, *arguments)
        raise KeyboardInterrupt

    save = Checkpoint.save
    monkeypatch.setattr(Checkpoint, "save", killed)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        _compile(onnx, images, out)
    monkeypatch.undo()
    assert list(out.glob("*.pt"))
    other = tmp_path / "other.npy"  # neither hindered by what is there, nor taking it
    np.save(other, small.data(40, seed=2)[0])
    assert _compile(onnx, other, out).reconstruction.count == 40
    found = _compile(onnx, images, out, force=True)
    assert found.reconstruction == library[1].reconstruction


@pytest.mark.usefixtures("brief_timing")
def test_a_plan_is_made_of_the_weights_that_it_gives(onnx, images, tmp_path, capsys) -> None:
    wishes = tvmquant.Wishes(size="0.8x", choices=[tvmquant.BitChoice.parse("w3a8")])
    plan = tmp_path / "plan.json"
    chosen = tvmquant.plan_onnx(onnx, images, wishes, out=plan, reconstruct=QUICK)
    assert chosen.plan.reconstruction["reconstruction"]["inputs"] == "float"
    assert any(choice.weight.bits == 3 for choice in chosen.plan.choices.values())
    kept = sorted((tmp_path / "plan-measurements" / "rounded").iterdir())
    assert len(kept) == 2  # of the layers that are no ends
    measured = {}
    for path in kept:
        measured |= json.loads(path.read_text())["weights"]
    done = compile_onnx(onnx, images, out=tmp_path / "out", plan=plan, reconstruct=True)
    warn_nearest(plan, done.plan)
    assert "plan.json was chosen for weights that are rounded anew" in capsys.readouterr().err
    found = {name: weight.integers for name, weight in done.reconstruction.weights.items()}
    assert found
    assert found.items() <= {name: w["integers"] for name, w in measured.items()}.items()


def test_rounders_that_leave_other_layers_are_told_apart(onnx, images, tmp_path) -> None:
    graph = tvmquant.load_onnx(onnx)
    first, *_ = (layer.id for layer in quantizable_layers(graph))
    every, some = (
        LayerRounder(graph, images, alone(QUICK), tmp_path, leaves).settings
        for leaves in ((), (first,))
    )
    assert every != some


def test_what_cannot_be_reconstructed_is_said_first(onnx, images, tmp_path) -> None:
    def refused(error, message, source=images, **options):
        with pytest.raises(error, match=message):
            _compile(onnx, source, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()

    refused(TrainingError, "no layer has weights of 2 to 4 bits", choice="w8a8")
    wide = tvmquant.Wishes(bops="0.9x", choices=[tvmquant.BitChoice.parse("w8a4")])
    refused(TrainingError, "no layer has weights of 2 to 4 bits", choice=None, wishes=wide)
    refused(TrainingError, "recipe lsq: trains", reconstruct="lsq")
    for changes, message in (
        ({"epochs": 1}, "the recipe: trains"),
        ({"residual_bits": 8}, r"residual_bits: is an option .*--residual-bits"),
        ({"insert_batch_norm": True, "batch_norm": "live"}, "insert_batch_norm: is of a training"),
    ):
        refused(TrainingError, message, reconstruct=Recipe.read(QUICK, changes))
    refused(DataError, "by what layers compute of data", None, dynamic=True)
    batches = (x[None] for x in small.data(8)[0])
    refused(DataError, "can be read only once", batches)
