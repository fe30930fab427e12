"""Importance that is learned: its formulas, one step, and the plans that follow from it."""

import numpy as np
import pytest
import torch

import tvmquant
from tests.tvmquant.training import small
from tvmquant import formats
from tvmquant.allocation import allocate
from tvmquant.bit_choice import BitChoice
from tvmquant.errors import SensitivityError, TrainingError
from tvmquant.layers import quantizable_layers
from tvmquant.passes import pipeline
from tvmquant.quantization import calibrate
from tvmquant.sensitivity import Sensitivity
from tvmquant.training import Recipe, train
from tvmquant.training.importance import (
    LearnedImportance,
    begin_with_statistics,
    first_weight_step,
    outliers,
)
from tvmquant.training.items import Items
from tvmquant.training.several_widths import SeveralWidths
from tvmquant.twin import Twin

WIDTHS = (2, 3, 4, 6, 8)
CHOICES = [BitChoice.parse(f"w{w}a{a}") for w in WIDTHS for a in WIDTHS]
CHANGES = {"epochs": 1, "batch_size": 32}


@pytest.fixture(scope="module")
def trained(graph, tmp_path_factory):
    out = tmp_path_factory.mktemp("importance")
    choices = {quantizable_layers(graph)[1].id: BitChoice.parse("w3a6")}
    return train(graph, small.data(), Recipe.read("limpq", CHANGES), out=out, choices=choices)


def test_a_first_step_of_a_weight_is_that_of_three_deviations() -> None:
    w = np.random.default_rng(0).normal(0.3, 0.2, (8, 4, 3, 3)).astype(np.float32)
    mean, std = w.mean(dtype=np.float64), w.std(ddof=1, dtype=np.float64)
    for bits in (2, 8):
        expected = max(abs(mean - 3 * std), abs(mean + 3 * std)) / 2 ** (bits - 1)
        found = first_weight_step(torch.from_numpy(w), 2 ** (bits - 1) - 1)
        assert found == pytest.approx(expected, rel=1e-6)


def test_a_first_step_of_an_activation_is_that_of_its_mean_magnitude(graph) -> None:
    calibration = calibrate(graph, small.data()[0], fold_batch_norm=False)
    recipe = Recipe.read("limpq")
    widths = SeveralWidths(graph, calibration, recipe, CHOICES[::-6], per_tensor=True)
    images = torch.from_numpy(small.data()[0])
    begin_with_statistics(widths, Items(images, None))
    edge = widths.layers[1].edges[0]
    seen = {}
    with torch.no_grad():
        Twin(widths.twin.write_back(), observe=seen.__setitem__)(images)
    mean = np.abs(seen[edge].numpy()).mean(dtype=np.float64)
    for held in widths.formats[widths.layers[1].id].activations:
        found = widths.step(edge, held)
        assert found == pytest.approx(2 * mean / np.sqrt(2**held.bits - 1), rel=1e-5)


def test_a_killed_training_goes_on(graph, tmp_path, monkeypatch) -> None:
    recipe = Recipe.read("limpq", {**CHANGES, "epochs": 2, "importance.widths": [3]})
    whole = train(graph, small.data(), recipe, out=tmp_path / "whole")
    after = LearnedImportance.after_step

    def killed(self, batch):
        if (batch.epoch, batch.step) == (1, 1):
            raise KeyboardInterrupt
        after(self, batch)

    monkeypatch.setattr(LearnedImportance, "after_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(graph, small.data(), recipe, out=tmp_path / "parts")
    monkeypatch.undo()
    assert train(graph, small.data(), recipe, out=tmp_path / "parts").sensitivity == (
        whole.sensitivity
    )


def test_steps_that_do_not_grow_with_coarseness_are_outliers() -> None:
    steps = {8: 0.1, 6: 0.2, 4: 0.15, 3: 0.18, 2: 0.17}
    named = {formats.parse(f"int{bits}"): step for bits, step in steps.items()}
    assert {held.bits for held in outliers(named)} == {4, 2}
    assert outliers({held: 1.0 for held in named}) == set()


def test_a_step_is_every_width_and_drawn_ones(graph, tmp_path, monkeypatch) -> None:
    seen, gradients = [], []
    one_pass, before = LearnedImportance.one_pass, LearnedImportance.before_step

    def observed(self, batch):
        seen.append(dict(self.widths.choices))
        return one_pass(self, batch)

    def observed_step(self, batch):
        for q in self.quantizers:
            if q.scale.grad is not None:
                q.scale.grad.mul_(1e6)
        before(self, batch)
        gradients.extend(q.scale.grad for q in self.quantizers)

    monkeypatch.setattr(LearnedImportance, "one_pass", observed)
    monkeypatch.setattr(LearnedImportance, "before_step", observed_step)
    changes = {**CHANGES, "batch_size": 96, "importance.widths": [2, 4]}
    found = train(graph, small.data(), Recipe.read("limpq", changes), out=tmp_path)
    inner = quantizable_layers(graph)[1:-1]
    assert [{str(choices[layer.id]) for layer in inner} for choices in seen[:3]] == [
        {"w8a8"}, {"w4a4"}, {"w2a2"},
    ]  # fmt: skip
    assert len(seen) == 4
    assert all(g is not None and bool((g.abs() <= 1.0).all()) for g in gradients)
    assert found.sensitivity is not None
    assert len(found.sensitivity.perturbation[inner[0].id]) == 9


def test_what_is_learned_is_steps_of_both_kinds(graph, trained) -> None:
    record = trained.sensitivity
    assert record.method == "limpq"
    assert record.model == graph.fingerprint()
    layers = quantizable_layers(graph)
    for layer in layers:
        row = record.layers[layer.id]
        for name, omega in record.perturbation[layer.id].items():
            choice = BitChoice.parse(name)
            terms = row.weight[choice.weight.name], row.activation[choice.activation.name]
            assert omega == sum(terms)
        assert len(record.perturbation[layer.id]) == (1 if layer.position else 25)


def test_alpha_weighs_the_steps_of_weights(graph, trained, tmp_path) -> None:
    recipe = Recipe.read("limpq", {**CHANGES, "importance.alpha": 0.5})
    other = train(graph, small.data(), recipe, out=tmp_path).sensitivity
    layer = quantizable_layers(graph)[1].id
    mine = trained.sensitivity.layers[layer]
    for name, value in other.layers[layer].weight.items():
        assert value == pytest.approx(mine.weight[name] / 4.0)
    assert other.layers[layer].activation == mine.activation


def test_the_given_choices_ship(graph, trained) -> None:
    images, _ = small.data(8, seed=1)
    exact = Twin(trained.graph.module, mode="exact")(torch.from_numpy(images))
    integer = trained.graph.with_module(
        pipeline.integerize(trained.graph.module, strict=True), "L2"
    )
    np.testing.assert_array_equal(tvmquant.simulate(integer, images)[0], exact.numpy())
    held = {edge.id: edge.format for edge in Twin(trained.graph.module).edges}
    assert {"int3", "uint6", "int8"} <= set(held.values())


def test_the_record_plans(graph, trained, tmp_path) -> None:
    trained.sensitivity.save(tmp_path / "sensitivity.json")
    record = Sensitivity.load(tmp_path / "sensitivity.json")
    assert record == trained.sensitivity
    layers = quantizable_layers(graph)
    free = allocate(layers, record.perturbation, choices=CHOICES, excluded=record.excluded)
    tight = allocate(
        layers, record.perturbation, choices=CHOICES, excluded=record.excluded, bops="0.5x"
    )
    assert tight.totals["bops"] <= 0.5 * tight.reference["bops"]
    assert tight.perturbation > free.perturbation
    taken = str(tight.choices[layers[1].id])
    without = {layers[1].id: [str(choice) for choice in CHOICES if str(choice) != "w8a8"]}
    pinned = allocate(layers, record.perturbation, choices=CHOICES, excluded=without)
    assert str(pinned.choices[layers[1].id]) == "w8a8"
    assert pinned.reasons[layers[1].id]
    assert taken not in record.excluded.get(layers[1].id, [])


def test_another_model_or_width_is_refused(graph, trained) -> None:
    record = trained.sensitivity
    record.check(graph.fingerprint(), CHOICES)
    with pytest.raises(SensitivityError, match=r"\(limpq\) is of another model, fingerprint"):
        record.check("0" * 64, CHOICES)
    with pytest.raises(SensitivityError, match=r"does not know w5a4; choose among w8a8, w8a6"):
        record.check(graph.fingerprint(), [BitChoice.parse("w5a4")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"importance.widths": [1, 4]}, r"importance.widths.0: 1: input should be greater"),
        ({"importance.widths": []}, r"importance.widths: .* at least 1 item"),
        ({"importance.alpha": -1.0}, r"importance.alpha: .* greater than or equal to 0"),
        ({"weights.step": "fixed"}, r"weights.step: importance is what is learned of steps"),
        ({"reconstruction": {}}, r"reconstruction: rounds at one width"),
    ],
)
def test_bad_recipes_are_refused(changes, message) -> None:
    with pytest.raises(TrainingError, match=message):
        Recipe.read("limpq", changes)


def test_choices_that_are_not_trained_are_refused(graph, tmp_path) -> None:
    choices = {quantizable_layers(graph)[1].id: BitChoice.parse("w5a5")}
    with pytest.raises(TrainingError, match=r"is not trained at w5a5; its weights are at int8,"):
        train(graph, small.data(), Recipe.read("limpq", CHANGES), out=tmp_path, choices=choices)
