import onnx
import pytest

from tvmquant.allocation import Plan


def test_a_library_leaves_as_a_file_that_other_runtimes_run(
    tvmquant, branches_library, branches_data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    outcome = tvmquant("export", branches_library, "--data", branches_data)
    path = tmp_path / "branches.qdq.onnx"
    onnx.checker.check_model(path, full_check=True)
    text = " ".join(outcome.stdout.split())
    assert "branches: branches.qdq.onnx is ready" in text
    assert "opset 21" in text
    assert "optimizations off, 4 items" in text
    assert "integers" in text
    assert "half up at a dyadic number" in text
    assert "--bytes stores these weights in bytes" in outcome.stderr
    quiet = tvmquant("export", branches_library, "--bytes", "--no-compare", "-q")
    assert quiet.stderr == ""
    assert "compared by" not in quiet.stdout


def test_what_is_told_is_one_document(tvmquant, branches_library, branches_data, tmp_path):
    path = tmp_path / "net.onnx"
    options = ["--opset", 17, "--data", branches_data, "--limit", 3, "--json", "-q"]
    told = tvmquant("export", branches_library, "-o", path, *options).json()
    plan = Plan.load(branches_library / "plan.json")
    assert told["out"] == str(path)
    assert (told["opset"], told["bias"], told["bytes"]) == (17, "float", path.stat().st_size)
    assert told["layers"] == {name: layer.choice for name, layer in plan.layers.items()}
    assert any("no integers of 16 bits" in text for text in told["differences"])
    found = told["comparison"]
    assert found["items"] == 3
    assert found["rounding"]["largest"] <= 1
    assert found["outputs"]["y"]["sqnr_db"] > 30
    (opset,) = onnx.load(path).opset_import
    assert opset.version == 17


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--opset", "12"], "opset 12: expected 13"),
        (["--bias", "int8"], "bias 'int8'; expected float or int32"),
        (["--data", "missing.npy"], "missing.npy"),
        (["--model", "missing.onnx"], "missing.onnx"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    tvmquant, branches_library, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    outcome = tvmquant("export", branches_library, *options, code=2)
    assert message in outcome.stderr
    assert not list(tmp_path.iterdir())
