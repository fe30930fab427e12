"""Weights that are rounded for the outputs' sake."""

import numpy as np
import pytest
import torch

import tvmquant
from tests.tvmquant.training import small
from tvmquant.bit_choice import BitChoice
from tvmquant.errors import TrainingError
from tvmquant.layers import quantizable_layers
from tvmquant.passes import pipeline
from tvmquant.training import Recipe, checkpoint, train
from tvmquant.twin import Twin

RECIPE = Recipe(
    epochs=0, batch_size=16, batch_norm="folded", reconstruction={"steps": 200, "lr": 0.1}
)


def _train(graph, out, choice="w3a8", recipe=RECIPE):
    choices = {layer.id: BitChoice.parse(choice) for layer in quantizable_layers(graph)[1:-1]}
    images, _ = small.data()
    return train(graph, images, recipe, out=out, choices=choices, validation=small.data(40, 1))


def _errors(folder):
    return torch.load(folder / "reconstruction.pt")["history"]


def test_outputs_come_nearer_and_the_library_computes_what_was_found(graph, tmp_path) -> None:
    trained = _train(graph, tmp_path)
    errors = _errors(tmp_path)
    assert len(errors) == 2
    assert all(found["after"] < 0.9 * found["before"] for found in errors)
    images, labels = small.data(40, seed=1)
    exact = Twin(trained.graph.module, mode="exact")(torch.from_numpy(images)).numpy()
    assert trained.history == [{"top1": 100 * np.mean(exact.argmax(1) == labels)}]
    integer = trained.graph.with_module(pipeline.integerize(trained.graph.module), "L2")
    np.testing.assert_array_equal(tvmquant.simulate(integer, images)[0], exact)
    tvmquant.export_onnx(trained.graph, tmp_path / "trained.onnx")
    again = tvmquant.quantize(tvmquant.load_onnx(tmp_path / "trained.onnx"))
    np.testing.assert_array_equal(tvmquant.simulate(again, images)[0], exact)


def test_weights_stay_between_the_integers_beside_them(graph, tmp_path) -> None:
    twin = Twin(_train(graph, tmp_path, "w2a8").graph.module, mode="quantized")
    steps = {}
    for name, edge in twin.weight_edges.items():
        quantizer = twin.quantizers[edge]
        if int(quantizer.qmax) == 1:
            scale = quantizer.scale[:, None, None, None]
            steps[name] = (twin.weights[name] / scale).detach()
    assert len(steps) == 2
    for found in steps.values():
        assert torch.allclose(found, found.round(), atol=1e-5)
        assert set(found.round().unique().tolist()) <= {-1.0, 0.0, 1.0}


def test_layers_of_8_bits_alone_leave_nothing_to_do(graph, tmp_path) -> None:
    with pytest.raises(TrainingError, match="no layer has weights of 2 to 4 bits"):
        _train(graph, tmp_path, "w8a8")


@pytest.mark.parametrize(
    "how", [{"blocks": True, "fisher": True}, {"blocks": True, "drop": 0.5, "step_lr": 1e-3}]
)
def test_blocks_come_nearer_and_the_record_makes_the_same_integers(graph, tmp_path, how) -> None:
    recipe = Recipe.read(RECIPE, {f"reconstruction.{name}": value for name, value in how.items()})
    trained = _train(graph, tmp_path, "w3a4", recipe)
    errors = _errors(tmp_path)
    assert all(found["after"] < found["before"] for found in errors)
    images, _ = small.data(40, seed=1)
    exact = Twin(trained.graph.module, mode="exact")(torch.from_numpy(images)).numpy()
    integer = trained.graph.with_module(pipeline.integerize(trained.graph.module), "L2")
    np.testing.assert_array_equal(tvmquant.simulate(integer, images)[0], exact)


def test_what_to_validate_with_is_checked_first(graph, tmp_path) -> None:
    images, _ = small.data()
    with pytest.raises(TrainingError, match="the data to validate with have no labels"):
        train(graph, images, RECIPE, out=tmp_path / "out", validation=images)
    assert not (tmp_path / "out").exists()


def test_a_killed_search_goes_on(graph, tmp_path, monkeypatch) -> None:
    whole = _train(graph, tmp_path / "whole")
    save = checkpoint.Checkpoint.save

    def killed(self, history):
        save(self, history)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Checkpoint, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        _train(graph, tmp_path / "parts")
    monkeypatch.undo()
    parts = _train(graph, tmp_path / "parts")
    assert _errors(tmp_path / "parts") == _errors(tmp_path / "whole")
    first, second = (Twin(t.graph.module).weights for t in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_training_may_follow(graph, tmp_path) -> None:
    recipe = Recipe.read(RECIPE, {"epochs": 1, "optimizer.lr": 1e-3, "objective.labels": 0.0})
    assert np.isfinite(_train(graph, tmp_path, recipe=recipe).history[0]["loss"])
