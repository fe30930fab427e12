"""One set of weights at several widths: formulas, a step of every recipe, and what is deployed."""

import itertools

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import tvmquant
from tests.tvmquant.training import small
from tvmquant.arithmetic import requantize
from tvmquant.cli.app import app
from tvmquant.errors import TrainingError
from tvmquant.machine import Machine
from tvmquant.passes import pipeline
from tvmquant.passes.store_weights import WEIGHTS
from tvmquant.training import Recipe, adaptive, train
from tvmquant.training.batch_norm import reestimate
from tvmquant.training.several_widths import SeveralWidths
from tvmquant.training.shared_weights import SharedQuantizer, dyadic, share_weights
from tvmquant.twin import Twin


def _random(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def test_teachers_are_selected_by_entropy_and_distance():
    logits = [_random(seed, 6, 5) * (seed + 1) for seed in range(3)]
    weights = [[_random(10 * i + layer, 4, 3) for layer in range(2)] for i in range(4)]
    scores = []
    for teacher in range(3):
        e = np.exp(logits[teacher].double().numpy())
        p = e / e.sum(1, keepdims=True)
        scores.append(-(p * np.log(p)).sum(1).mean())
        l1 = [
            np.abs((a - b).numpy()).sum() for a, b in zip(weights[teacher], weights[3], strict=True)
        ]
        assert float(adaptive.distance(weights[teacher], weights[3])) == pytest.approx(sum(l1))
        assert float(adaptive.entropy(logits[teacher])) == pytest.approx(scores[-1], rel=1e-6)
    distances = torch.tensor([5.0, 1.0, 3.0])
    for weight in (0.0, 0.1, 10.0):
        expected = int(np.argmin(np.asarray(scores) + weight * distances.numpy()))
        assert adaptive.selected(torch.tensor(scores), distances, weight) == expected


def test_earlier_layers_keep_the_teacher_longer():
    assert adaptive.keeping(0.5, 0.8, 0.0, 4) == [0.5] * 4
    half = adaptive.keeping(0.5, 0.8, 0.4, 4)
    ends = [0.8, 0.7, 0.6, 0.5]
    np.testing.assert_allclose(half, [0.5 + 0.5 * 0.4 / end for end in ends])
    assert half == sorted(half)
    assert adaptive.keeping(0.5, 0.8, 0.8, 4) == [1.0] * 4
    rising = [adaptive.keeping(0.5, 0.8, t, 3) for t in np.linspace(0, 1, 9)]
    for before, after in itertools.pairwise(rising):
        assert all(a <= b for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(("first", "bits"), [(0.0, {8}), (1.0, {6, 4, 2})])
def test_layers_have_their_own_width_or_the_teachers(graph, tmp_path, monkeypatch, first, bits):
    seen = []
    swap = adaptive.AdaptiveWidths._swap

    def observed(self, batch, number, own, teacher):
        swap(self, batch, number, own, teacher)
        seen.append({choice.weight.bits for choice in self.widths.choices.values()} - {8})
        assert seen[-1] <= {own.weight.bits, teacher.weight.bits}

    monkeypatch.setattr(adaptive.AdaptiveWidths, "_swap", observed)
    monkeypatch.setattr(adaptive, "selected", lambda *_: 0)
    changes = {"epochs": 1, "batch_size": 96, "adaptive.swap": first}
    train(graph, small.data(96), Recipe.read("coquant", changes), out=tmp_path)
    assert [found or {8} for found in seen] == ([{8}] * 3 if first == 0.0 else [{6}, {4}, {2}])
    assert set.union(*(found or {8} for found in seen)) == bits


def test_processes_select_the_same_teacher(graph, tmp_path, monkeypatch):
    seen = []

    def observed(entropies, *_):
        seen.append(entropies.tolist())
        return 0

    monkeypatch.setattr(adaptive, "selected", observed)
    monkeypatch.setattr("tvmquant.training.distributed.mean", lambda _value: 7.0)
    train(graph, small.data(16), Recipe.read("coquant", {"epochs": 1, "batch_size": 16}),
          out=tmp_path)  # fmt: skip
    assert seen == [[7.0], [7.0] * 2, [7.0] * 3]


def _several(graph, recipe):
    calibration = tvmquant.calibrate(graph, small.data()[0], fold_batch_norm=False)
    choices = [tvmquant.BitChoice.parse(f"w{bits}a{bits}") for bits in (8, 6, 4, 2)]
    widths = SeveralWidths(graph, calibration, recipe, choices, norms_by="weight")
    share_weights(widths)
    return widths, choices


def test_narrower_weights_are_requantized_wider_ones(graph):
    widths, _ = _several(graph, Recipe(batch_size=16))
    edge, switched = next((e, s) for e, s in widths.switched.items()
                          if e in widths.weight_edges.values())  # fmt: skip
    (layer,) = [name for name, found in widths.weight_edges.items() if found == edge]
    weight = widths.twin.weights[layer]
    (_, widest), *others = switched.by_format.items()
    steps, scale = widest.steps(weight)
    assert steps.abs().max() > 7
    np.testing.assert_array_equal(widest.written(weight).numpy(), (steps * scale).numpy())
    for name, quantizer in others:
        assert isinstance(quantizer, SharedQuantizer)
        own, wide = quantizer.scale.detach(), widest.scale.detach()
        multiplier, shift = (v.numpy().astype(np.int64) for v in dyadic(wide, own))
        np.testing.assert_allclose(multiplier / 2.0**shift, (wide / own).numpy(), rtol=2**-8)
        terms = [(steps.numpy().astype(np.int64), 0, multiplier[:, None, None, None])]
        low, high = int(quantizer.qmin), int(quantizer.qmax)
        shift, step = (v[:, None, None, None] for v in (shift, own.numpy()))
        expected = requantize(terms, 0, shift, 0, low, high, "int8").astype(np.float32)
        found = quantizer(weight)
        np.testing.assert_array_equal(found.detach().numpy(), expected * step, err_msg=name)
        found.sum().backward()
        inside = np.abs(weight.detach().numpy() / step) < high - 0.6
        assert np.all(weight.grad.numpy()[inside] == 1.0)
        assert quantizer.scale.grad.abs().sum() > 0.0
        weight.grad = None


@pytest.mark.parametrize("name", ["coquant", "bit-mixer"])
def test_one_library_computes_every_width(graph, tmp_path, name):
    recipe = Recipe.read(name, {"epochs": 2, "batch_size": 16})
    images, labels = small.data(40, seed=1)
    trained = train(graph, small.data(), recipe, out=tmp_path, validation=(images, labels))
    assert list(trained.widths) == [8, 6, 4, 2]
    integer = {
        width: found.with_module(pipeline.integerize(found.module), "L2")
        for width, found in trained.widths.items()
    }
    tvmquant.build(integer, out=tmp_path / "library", batch=40)
    for width, found in trained.widths.items():
        exact = Twin(found.module, mode="exact")(torch.from_numpy(images)).numpy()
        library = tvmquant.load(tmp_path / "library", width=width)
        np.testing.assert_array_equal(library(images), exact)
        assert trained.history[-1][f"top1_w{width}"] == 100 * np.mean(exact.argmax(1) == labels)
    machine = Machine.of("native", 1)
    lowered = {
        width: pipeline.expose_integers(pipeline.lower(found.module, machine, 1))
        for width, found in integer.items()
    }
    stored = pipeline.store_weights(pipeline.merge(lowered)).attrs[WEIGHTS]
    # the layers between the ends, at three widths
    assert sum("source" in found for found in stored) >= 2 * 3


def test_a_training_that_was_interrupted_goes_on(graph, tmp_path):
    def run(out, *, stops):
        def on_epoch(epoch, _found):
            if stops and epoch == 2:
                raise KeyboardInterrupt

        return train(graph, small.data(), recipe, out=out, on_epoch=on_epoch)

    recipe = Recipe.read("coquant", {"epochs": 3, "batch_size": 16})
    expected = run(tmp_path / "whole", stops=False)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", stops=True)
    found = run(tmp_path / "parts", stops=False)
    assert found.history[-1]["most_distance"] == expected.history[-1]["most_distance"] > 0.0
    for width, one in expected.widths.items():
        assert found.widths[width].fingerprint() == one.fingerprint()


def test_what_is_quantized_in_the_end_was_trained(graph, tmp_path):
    changes = {"epochs": 1, "batch_size": 16, "optimizer.lr": 0.05}

    def trained(name, **more):
        recipe = Recipe.read("dq", changes | more)
        found = train(graph, small.data(), recipe, out=tmp_path / name)
        return {width: Twin(at.module, mode="quantized") for width, at in found.widths.items()}

    direct = trained("direct")
    again = trained("again", **{"adaptive.norms": "weight", "adaptive.reestimate": 3})
    *_, mean = (name for name in direct[8].norm_layers if name.endswith("_3"))
    assert torch.equal(direct[2].constants[mean], direct[8].constants[mean])
    assert not torch.equal(again[2].constants[mean], again[8].constants[mean])
    start = Twin(graph.module)
    for layer, weight in direct[8].weights.items():
        assert (weight - start.weights[layer]).abs().max() > 1e-3


def test_statistics_are_found_anew(graph):
    twin = Twin(graph.module)
    mean = next(name for name in twin.norm_layers if name.endswith("_3"))
    images = torch.from_numpy(small.data(64)[0])
    layer = twin.norm_layers[mean]
    expected = torch.nn.functional.conv2d(images, twin.weights[layer], padding=1)
    reestimate(twin, [images] * 80)
    assert not twin.live_batch_norm
    found = twin.constants[mean]
    bias = twin.constants.get(f"{layer}:bias".replace(".", "_"))
    wanted = expected.mean((0, 2, 3)) + (0.0 if bias is None else bias.reshape(-1))
    np.testing.assert_allclose(found.detach(), wanted.detach(), atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adaptive.widths": [8, 8]}, "widths: one is there twice"),
        ({"adaptive.widths": [8]}, "adaptive.widths"),
        ({"adaptive.widths": [8, 1]}, "adaptive.widths"),
        ({"adaptive.teacher": "next"}, "swap: layers are swapped with the teacher"),
        ({"adaptive": {"most_distance": 1.0}}, "most_distance: says which teacher is selected"),
        ({"adaptive.passes": "float"}, "teacher: wider passes teach; set passes: all"),
        ({"adaptive": {"mixed": True, "passes": "widest"}}, "mixed: widths are drawn for a pass"),
        ({"adaptive": {"reestimate": 5, "norms": "shared"}}, "reestimate: widths that share norms"),
        ({"reconstruction": {}}, "reconstruction: rounds at one width"),
        ({"weights.share": 0.5}, "weights: narrower ones follow"),
        ({"importance": {}}, "importance and adaptive: a training has one of them"),
    ],
)
def test_recipes_that_are_none(changes, message):
    with pytest.raises(TrainingError, match=message):
        Recipe.read("coquant", changes)


def test_the_command_writes_a_file_for_each_width(model, tmp_path):
    images, labels = small.data(32)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    arguments = ["train", model, "--data", tmp_path / "data.npz", "--recipe", "switchable", "-o",
                 tmp_path / "run", "--set", "epochs=1", "--set", "batch_size=16", "-q"]  # fmt: skip
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trained-w3.onnx").touch()  # of an earlier training
    assert CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False).exit_code == 0
    names = {path.name for path in (tmp_path / "run").glob("*.onnx")}
    assert names == {f"trained-w{width}.onnx" for width in (8, 6, 4, 2)}


def test_choices_of_layers_are_refused(model, tmp_path):
    images, labels = small.data(32)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    arguments = ["train", model, "--data", tmp_path / "data.npz", "-o", tmp_path / "run", "-q",
                 "--set", "batch_size=16"]  # fmt: skip

    def refused(*more, message):
        found = CliRunner().invoke(app, list(map(str, [*arguments, *more])))
        assert found.exit_code == 2
        assert message in " ".join(found.stderr.split())

    refused("--recipe", "switchable", "--choice", "w2a2", message="at 8, 6, 4, 2 bits (adaptive.w")
    refused("--plan", "p.json", "--choice", "w2a2", message="the bit widths; leave out --choice")
