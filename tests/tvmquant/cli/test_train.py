import numpy as np
import onnx
import pytest

from tests.tvmquant.training import small


@pytest.fixture
def files(tmp_path):
    images, labels = small.data()
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    return small.export(tmp_path / "small.onnx"), tmp_path / "data.npz"


def test_a_trained_file_is_what_compile_takes(tvmquant, files, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, data = files
    options = ["--data", data, "--validation", data, "--set", "epochs=2", "--set", "batch_size=16"]
    outcome = tvmquant("train", model, *options, "--choice", "w2a4")
    assert "epoch 2: loss" in outcome.stderr
    assert "items/s" in outcome.stderr
    assert "small-trained/trained.onnx is ready for tvmquant compile" in outcome.stdout
    onnx.checker.check_model(tmp_path / "small-trained" / "trained.onnx", full_check=True)
    told = tvmquant("train", model, *options, "--choice", "w2a4", "--json", "-q")
    assert told.stderr == ""
    top1 = told.json()["epochs"][-1]["top1"]
    compiled = tvmquant("compile", "small-trained/trained.onnx", "-o", "library")
    assert "2 w8a8, 2 w2a4" in compiled.stdout
    found = tvmquant("eval", "library", "--data", data, "--json").json()
    assert found["top1"] == pytest.approx(top1)


def test_rounding_anew_needs_no_labels(tvmquant, files, tmp_path) -> None:
    images, _ = small.data(24)
    np.save(tmp_path / "images.npy", images)
    options = ["--recipe", "adaround", "--set", "reconstruction.steps=5", "--choice", "w4a8"]
    out = tmp_path / "rounded"
    told = tvmquant("train", files[0], "--data", tmp_path / "images.npy", *options, "-o", out)
    assert told.stdout.strip() == f"small: {out}/trained.onnx is ready for tvmquant compile"
    assert "reconstruct: " in told.stderr


@pytest.mark.usefixtures("brief_timing")
def test_importance_that_is_learned_plans(tvmquant, files, tmp_path) -> None:
    model, data = files
    options = ["--recipe", "limpq", "--set", "epochs=1", "--set", "batch_size=32"]
    options += ["--set", "importance.widths=[4]", "-o", tmp_path / "learned", "-q"]
    told = tvmquant("train", model, "--data", data, *options).stdout
    learned = tmp_path / "learned" / "sensitivity.json"
    assert f"trained.onnx is ready for tvmquant compile, {learned} for" in " ".join(told.split())
    options = ["--sensitivity", learned, "--bops", "0.6x", "-o", tmp_path / "plan.json", "-q"]
    plan = tvmquant("plan", model, "--data", data, *options, "--json").json()["plan"]
    assert plan["sensitivity"] == "limpq"
    inner = [layer["choice"] for layer in plan["layers"].values()][1:-1]
    assert set(inner) <= {f"w{w}a{a}" for w in (4, 8) for a in (4, 8)}
    assert inner != ["w8a8"] * 2
    more = ["--choices", "w3a3", "-o", tmp_path / "other.json"]
    outcome = tvmquant("plan", model, "--data", data, "--sensitivity", learned, *more, code=2)
    assert "(limpq) does not know w3a3; choose among w8a8," in " ".join(outcome.stderr.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "none-such"], "no recipe 'none-such'"),
        (["--set", "epochs"], "--set 'epochs'; expected FIELD=VALUE"),
        (["--set", "epochs=-1"], "epochs: "),
        (["--set", "epochs=0"], "recipe lsq: nothing to do"),
        (["--choice", "w9a8"], "w9a8"),
        (["--plan", "missing.json"], "missing.json"),
        (["--validation", "missing.npz"], "missing.npz"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(
    tvmquant, files, tmp_path, monkeypatch, options, message
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    outcome = tvmquant("train", files[0], "--data", files[1], *options, code=2)
    assert message in outcome.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_data_are_asked_for(tvmquant, files) -> None:
    assert "train needs data" in tvmquant("train", files[0], code=2).stderr


def test_widths_that_are_learned_are_told_and_shipped(tvmquant, files, tmp_path) -> None:
    model, data = files
    options = ["--recipe", "fdqmp", "--set", "epochs=3", "--set", "batch_size=16"]
    options += ["--set", "widths.weights=0.44"]
    options += ["--data", data, "--validation", data, "-o", tmp_path / "learned"]
    told = " ".join(tvmquant("train", model, *options).stderr.split())
    assert ", weights at 4" in told
    assert "% of 8 bits, activations at 3" in told
    library = tmp_path / "library"
    tvmquant("compile", tmp_path / "learned" / "trained.onnx", "-o", library, "-q")
    layers = tvmquant("inspect", library, "--json").json()["layers"]
    assert any(layer["channel_widths"] for layer in layers)
    assert "(w " in tvmquant("inspect", library).stdout
