"""What is trained is what ships, and a training that was interrupted ends as if it had not been."""

import numpy as np
import onnx
import pytest
import torch

import tvmquant
from tests.tvmquant.training import small
from tvmquant.bit_choice import BitChoice
from tvmquant.errors import TrainingError
from tvmquant.layers import quantizable_layers
from tvmquant.passes import pipeline
from tvmquant.training import Recipe, items, train
from tvmquant.training.inserted_norms import with_batch_norms
from tvmquant.training.recipe_files import names
from tvmquant.twin import Twin
from tvmquant.twin.fake_quantize import along_axis

RECIPE = Recipe(epochs=2, batch_size=16, optimizer={"lr": 0.05, "step_lr": 1e-3})


def _choices(graph, choice="w4a4"):
    return {layer.id: BitChoice.parse(choice) for layer in quantizable_layers(graph)[1:-1]}


def _train(graph, out, recipe=RECIPE, **options):
    options = {"choices": _choices(graph), **options}
    return train(graph, small.data(), recipe, out=out, **options)


def _exact(trained, images):
    return Twin(trained.graph.module, mode="exact")(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("batch_norm", ["live", "frozen", "folded"])
def test_the_library_computes_what_was_trained(graph, tmp_path, batch_norm) -> None:
    recipe = Recipe.read(RECIPE, {"batch_norm": batch_norm})
    trained = _train(graph, tmp_path, recipe, validation=small.data(40, seed=1))
    images, labels = small.data(40, seed=1)
    exact = _exact(trained, images)
    with torch.no_grad():
        rounded = Twin(trained.graph.module, mode="quantized")(torch.from_numpy(images))
    np.testing.assert_allclose(rounded.numpy(), exact, rtol=0.0, atol=1e-3)
    assert trained.history[-1]["top1"] == 100 * np.mean(exact.argmax(1) == labels)
    module = pipeline.integerize(trained.graph.module, strict=True)
    integer = trained.graph.with_module(module, "L2")
    np.testing.assert_array_equal(tvmquant.simulate(integer, images)[0], exact)
    tvmquant.build(integer, out=tmp_path / "library", batch=40)
    np.testing.assert_array_equal(tvmquant.load(tmp_path / "library")(images), exact)
    # and as a file
    tvmquant.export_onnx(trained.graph, tmp_path / "trained.onnx")
    again = tvmquant.quantize(tvmquant.load_onnx(tmp_path / "trained.onnx"))
    np.testing.assert_array_equal(tvmquant.simulate(again, images)[0], exact)


@pytest.mark.parametrize("name", names())
def test_every_recipe_trains_what_ships(graph, tmp_path, name) -> None:
    epochs = max(1, len(Recipe.read(name).phases))
    recipe = Recipe.read(name, {"epochs": epochs, "batch_size": 32})
    choices = _choices(graph, "w3a6") if recipe.adaptive is None else {}
    trained = _train(graph, tmp_path, recipe, choices=choices)
    assert np.isfinite(trained.history[0]["loss"])
    images, _ = small.data(8, seed=1)
    integer = trained.graph.with_module(pipeline.integerize(trained.graph.module), "L2")
    np.testing.assert_array_equal(tvmquant.simulate(integer, images)[0], _exact(trained, images))


def test_training_learns(graph, tmp_path) -> None:
    recipe = Recipe.read(RECIPE, {"epochs": 10, "objective": {"labels": 1.0, "distillation": 0.0}})
    history = _train(graph, tmp_path, recipe, validation=small.data(100, seed=1)).history
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    assert history[-1]["top1"] > 60


def test_steps_are_learned_or_stay(graph, tmp_path) -> None:
    fixed = Recipe.read(RECIPE, {"weights.step": "fixed", "activations.step": "fixed"})
    scales = {
        name: {k: q.scale.detach() for k, q in Twin(_train(graph, tmp_path / name, r, choices={})
               .graph.module).quantizers.items()}
        for name, r in (("fixed", fixed), ("learned", RECIPE))
    }  # fmt: skip
    moved = [not torch.equal(scales["fixed"][k], scales["learned"][k]) for k in scales["fixed"]]
    assert all(moved)


PHASES = [{"share": 0.5}, {"share": 0.5, "changes": {"weights.step": "fixed"}}]


@pytest.mark.parametrize(
    ("changes", "seconds"), [({}, 1e9), ({}, 0.0), ({"phases": PHASES}, 1e9)],
    ids=["between-epochs", "within-an-epoch", "phases"],
)  # fmt: skip
def test_a_killed_training_goes_on(graph, tmp_path, monkeypatch, changes, seconds) -> None:
    recipe = Recipe.read(RECIPE, {"weights.stochastic": True, **changes})
    whole = _train(graph, tmp_path / "whole", recipe)
    monkeypatch.setattr("tvmquant.training.loop.SECONDS_BETWEEN", seconds)
    batches = items.batches_of

    def killed(data, recipe, epoch, **options):
        for step, batch in enumerate(batches(data, recipe, epoch, **options)):
            if (epoch, step) == (1, 2):
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr("tvmquant.training.loop.batches_of", killed)
    with pytest.raises(KeyboardInterrupt):
        _train(graph, tmp_path / "parts", recipe)
    monkeypatch.undo()
    parts = _train(graph, tmp_path / "parts", recipe)
    for first, second in zip(whole.history, parts.history, strict=True):
        assert first["loss"] == second["loss"]
    images, _ = small.data(8, seed=2)
    np.testing.assert_array_equal(_exact(whole, images), _exact(parts, images))


def test_a_checkpoint_of_another_training_is_refused(graph, tmp_path) -> None:
    _train(graph, tmp_path / "parts", Recipe.read(RECIPE, {"epochs": 1}))
    with pytest.raises(TrainingError, match=r"recipe differs \(epochs was 1, and is 3\);"):
        _train(graph, tmp_path / "parts", Recipe.read(RECIPE, {"epochs": 3}))
    saved = torch.load(tmp_path / "parts" / "checkpoint.pt")
    del saved["twin"]
    torch.save(saved, tmp_path / "parts" / "checkpoint.pt")
    with pytest.raises(TrainingError, match="by another version of tvmquant; choose another"):
        _train(graph, tmp_path / "parts", Recipe.read(RECIPE, {"epochs": 1}))
    (tmp_path / "parts" / "checkpoint.pt").write_bytes(b"no")
    with pytest.raises(TrainingError, match="is no checkpoint"):
        _train(graph, tmp_path / "parts")


def test_a_loss_that_diverges_stops_and_keeps_what_was_done(graph, tmp_path, monkeypatch) -> None:
    losses = iter([1.0] * 8 + [float("nan")])

    def loss(logits, *_):
        return logits.sum() * 0.0 + next(losses)

    monkeypatch.setattr("tvmquant.training.method.loss", loss)
    with pytest.raises(TrainingError, match=r"nan in step 3 of epoch 2; lower optimizer.lr \(now"):
        _train(graph, tmp_path)
    assert len(torch.load(tmp_path / "checkpoint.pt")["history"]) == 1


def test_weights_that_are_no_numbers_are_not_kept(graph, tmp_path, monkeypatch) -> None:
    def after_step(self, _batch):
        with torch.no_grad():
            next(iter(self.training.twin.weights.values())).fill_(float("inf"))

    recipe = Recipe.read(RECIPE, {"epochs": 1, "batch_size": 96})
    monkeypatch.setattr("tvmquant.training.method.Method.after_step", after_step)
    with pytest.raises(TrainingError, match=r"weight' is not finite; lower optimizer\.lr"):
        _train(graph, tmp_path, recipe)
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("changes", "labels", "message"),
    [
        ({}, None, "the data have none; label them"),
        ({}, np.full(96, 4), "label 4 is no class of a network of 4 outputs"),
        ({"batch_size": 97}, np.zeros(96, int), "96 items are no batch of 97"),
        ({"batch_size": 1}, np.zeros(96, int), "statistics of more than one item"),
    ],
)
def test_data_that_do_not_fit_are_refused(graph, tmp_path, changes, labels, message) -> None:
    images, _ = small.data()
    data = images if labels is None else (images, labels)
    with pytest.raises(TrainingError, match=message):
        train(graph, data, Recipe.read(RECIPE, changes), out=tmp_path)


def test_labels_of_no_class_are_not_validated_with(graph, tmp_path) -> None:
    images, labels = small.data(16)
    with pytest.raises(TrainingError, match=r"label 4 \(of the data to validate with\) is no cla"):
        _train(graph, tmp_path, validation=(images, labels * 0 + small.CLASSES))


def test_without_labels_the_float_network_teaches(graph, tmp_path) -> None:
    recipe = Recipe.read(RECIPE, {"objective": {"labels": 0.0, "distillation": 1.0}})
    history = train(graph, small.data()[0], recipe, out=tmp_path, choices=_choices(graph)).history
    assert history[-1]["loss"] < history[0]["loss"]
    assert "top1_training" not in history[-1]


def test_a_network_without_normalization_is_trained_folded(tmp_path) -> None:
    model = tvmquant.load_onnx(small.export(tmp_path / "m.onnx", batch_norm=False, softmax=True))
    with pytest.raises(TrainingError, match=r"batch_norm: live, and the model has no batch norm"):
        _train(model, tmp_path)
    recipe = Recipe.read(RECIPE, {"batch_norm": "folded", "optimizer.lr": 0.01})
    assert np.isfinite(_train(model, tmp_path, recipe).history[-1]["loss"])


def test_normalizations_are_inserted_and_ship_folded(graph, tmp_path) -> None:
    model = tvmquant.load_onnx(small.export(tmp_path / "m.onnx", batch_norm=False))
    images, labels = small.data(40, seed=1)
    normal = with_batch_norms(model, tvmquant.open_data(images, inputs=model.item_inputs()))
    outputs = [Twin(g.module)(torch.from_numpy(images)).detach() for g in (model, normal)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    recipe = Recipe.read(RECIPE, {"insert_batch_norm": True})
    trained = _train(model, tmp_path, recipe, validation=(images, labels))
    exact = _exact(trained, images)
    assert trained.history[-1]["top1"] == 100 * np.mean(exact.argmax(1) == labels)
    tvmquant.export_onnx(trained.graph, tmp_path / "trained.onnx")
    again = tvmquant.quantize(tvmquant.load_onnx(tmp_path / "trained.onnx"), strict=True)
    np.testing.assert_array_equal(tvmquant.simulate(again, images)[0], exact)
    with pytest.raises(TrainingError, match="every layer but the last has a normalization"):
        _train(graph, tmp_path / "other", recipe)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": {"labels": 0.0, "distillation": 0.0, "features": 1.0}},
        {"objective": {"teacher": "self"}},
        {"augmentation": {"mixup": 0.3, "resized_crop": (0.6, 1.0), "brightness": 0.1}},
        {"precision": "bfloat16", "objective": {"smoothing": 0.1, "features": 1.0}},
        {"optimizer": {"name": "rmsprop", "lr": 1e-3, "most_norm": 1.0}},
        {"schedule": {"decay": "steps", "at": (0.5,), "warmup": 0.2}},
    ],
    ids=["features", "self", "augmentation", "bfloat16", "rmsprop", "steps"],
)
def test_objectives_and_optimizers_learn(graph, tmp_path, changes) -> None:
    recipe = Recipe.read(RECIPE, {"epochs": 4, **changes})
    history = _train(graph, tmp_path, recipe).history
    assert history[-1]["loss"] < history[0]["loss"]


def test_another_network_can_teach(graph, tmp_path) -> None:
    teacher = tvmquant.load_onnx(small.export(tmp_path / "t.onnx", batch_norm=False, softmax=True))
    recipe = Recipe.read(RECIPE, {"objective": {"labels": 0.0, "distillation": 1.0}})
    own, other = (
        _train(graph, tmp_path / name, recipe, teacher=taught).history[-1]["loss"]
        for name, taught in (("own", None), ("other", teacher))
    )
    assert own != other
    renamed = onnx.load(tmp_path / "t.onnx")
    for number, node in enumerate(renamed.graph.node):
        node.name = f"node{number}"
    onnx.save(renamed, tmp_path / "renamed.onnx")
    strange = tvmquant.load_onnx(tmp_path / "renamed.onnx")
    recipe = Recipe.read(RECIPE, {"objective.features": 1.0})
    with pytest.raises(TrainingError, match=r"objective.features: the teacher has no layer .*Conv"):
        _train(graph, tmp_path / "s", recipe, teacher=strange)
    for name, options, changes, message in (
        ("wide", {"channels": 24}, {"objective.features": 1.0}, r"reads \(16, 4, 4\) in the mod"),
        ("classes", {"classes": 7}, {}, r"for an item it gives \(7,\), the model \(4,\)"),
        ("large", {"side": 12}, {}, r"it takes \(3, 12, 12\) of an item, the model \(3, 8, 8\)"),
        ("none", {}, {"objective.distillation": 0.0}, "the recipe asks no teacher; leave it out"),
    ):
        teacher = tvmquant.load_onnx(small.export(tmp_path / f"{name}.onnx", **options))
        with pytest.raises(TrainingError, match=message):
            _train(graph, tmp_path / name, Recipe.read(RECIPE, changes), teacher=teacher)
    with pytest.raises(TrainingError, match="device 'nowhere': torch cannot compute there"):
        _train(graph, tmp_path / "d", device="nowhere")


def test_what_cannot_be_written_to_is_said_at_once(graph, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"cannot write to .*file \(File exists\); choose"):
        _train(graph, tmp_path / "file")


def test_phases_have_fields_of_their_own(graph, tmp_path) -> None:
    phases = [
        {"share": 0.5, "changes": {"weights.step": "fixed", "activations.step": "fixed"}},
        {"share": 0.5},
    ]
    still = Recipe.read(RECIPE, {"epochs": 2, "phases": phases})
    first, second = still.in_phases()
    assert (first.epochs, second.epochs) == (1, 1)
    assert (first.weights.step, second.weights.step) == ("fixed", "learned")
    for phases, message in (
        ([{"share": 0.5}], "shares add up to 0.5, not to 1"),
        ([{"share": 0.1}, {"share": 0.9}], "of 2 epochs none is phase 1's"),
    ):
        with pytest.raises(TrainingError, match=message):
            Recipe.read(RECIPE, {"phases": phases})


def test_the_file_holds_the_integers_of_the_last_forward_pass(graph, tmp_path) -> None:
    trained = _train(graph, tmp_path)
    twin = Twin(trained.graph.module, mode="quantized")
    model = tvmquant.export_onnx(trained.graph, tmp_path / "trained.onnx").model.graph
    numbers = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.initializer}
    made = {name: node for node in model.node for name in node.output}
    found = {}
    for node in model.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            found[node.name] = numbers[made[node.input[1]].input[0]].astype(int)
    assert set(found) == set(twin.weights)
    for name, weight in twin.weights.items():
        quantizer = twin.quantizers[twin.weight_edges[name]]
        with torch.no_grad():
            step = along_axis(quantizer.scale, weight, quantizer.axis)
            step = step if quantizer.multiplier is None else step * quantizer.multiplier
            whole = quantizer(weight) / step
        np.testing.assert_array_equal(found[name], whole.round().numpy().astype(int))
