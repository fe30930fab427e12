import json
import shutil

import numpy as np
import pytest


def without_its_model(library, folder):
    """Return a copy of a library whose manifest names an ONNX file that is not there."""
    copy = shutil.copytree(library, folder / "moved")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["model"]["path"] = str(folder / "gone.onnx")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


def test_eval_reports_both_networks(tvmquant, small_library, small_data):
    text = tvmquant("eval", small_library, "--data", small_data).stdout
    assert "library" in text
    assert "float     100.00 %" in text
    assert "dB" in text


def test_json_is_one_document(tvmquant, small_library, small_data):
    report = tvmquant(
        "eval", small_library, "--data", small_data, "--select", "step=2", "--limit", 7, "--json"
    ).json()
    assert report["count"] == 7
    assert report["reference_top1"] == 100.0
    assert report["agreement"] == report["top1"]
    assert report["sqnr_db"] > 25


def test_without_labels_the_library_is_only_compared(tvmquant, small_library, small_data, tmp_path):
    with np.load(small_data) as data:
        np.save(tmp_path / "x.npy", data["images"])
    report = tvmquant("eval", small_library, "--data", tmp_path / "x.npy", "--json").json()
    assert report["top1"] is report["reference_top1"] is None
    assert report["agreement"] > 90

    moved = without_its_model(small_library, tmp_path)
    outcome = tvmquant("eval", moved, "--data", tmp_path / "x.npy", code=2)
    assert "pass --model MODEL.onnx" in outcome.stderr


def test_without_the_float_model_accuracy_remains(
    tvmquant, small_library, small_onnx, small_data, tmp_path
):
    moved = without_its_model(small_library, tmp_path)
    outcome = tvmquant("eval", moved, "--data", small_data, "--json")
    assert "pass --model" in outcome.stderr
    assert outcome.json()["agreement"] is None
    assert outcome.json()["top1"] > 90

    command = ["eval", moved, "--data", small_data, "--json", "--model", small_onnx]
    assert tvmquant(*command).json()["agreement"] > 90


def test_another_float_model_is_pointed_out(
    tvmquant, small_library, small_onnx, small_data, tmp_path
):
    other = tmp_path / "other.onnx"
    # an unknown field at the end of the file leaves the model as it is
    other.write_bytes(small_onnx.read_bytes() + b"\xfa\x3f\x01x")
    outcome = tvmquant("eval", small_library, "--data", small_data, "--model", other)
    assert "not the file that the library was compiled from" in outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "pass --data"),
        (["--data", "nowhere"], "does not exist"),
        (["--data", "DATA", "--model", "nowhere.onnx"], "nowhere.onnx is not there"),
        (["--data", "WRONG"], "shape (3, 9, 9)"),
        (["--data", "LABELS"], "label 10 is not a class"),
    ],
)
def test_wrong_input(tvmquant, small_library, small_data, tmp_path, arguments, message):
    images = np.zeros((2, 3, 9, 9), np.float32)
    np.save(tmp_path / "wrong.npy", images)
    np.savez(tmp_path / "labels.npz", images=images[:, :, :8, :8], labels=[0, 10])
    names = {
        "DATA": small_data,
        "WRONG": tmp_path / "wrong.npy",
        "LABELS": tmp_path / "labels.npz",
    }
    command = [names.get(argument, argument) for argument in arguments]
    outcome = tvmquant("eval", small_library, *command, code=2)
    assert message in outcome.stderr
    assert outcome.stdout == ""
