"""Commands on models that were quantized elsewhere."""


def test_they_compile_without_data(tvmquant, quantized_onnx, tmp_path):
    out = tmp_path / "library"
    summary = tvmquant("compile", quantized_onnx, "-o", out, "--threads", 1, "--json").json()
    assert (summary["bits"], summary["outputs"]) == ({"w8a8": 2}, [])


def test_budgets_ask_to_requantize(tvmquant, quantized_onnx, tmp_path):
    command = ["compile", quantized_onnx, "-o", tmp_path / "library", "--size", "0.7x"]
    assert "pass --requantize" in tvmquant(*command, code=2).stderr


def test_they_are_inspected_as_they_are(tvmquant, quantized_onnx):
    layers = tvmquant("inspect", quantized_onnx, "--json").json()["layers"]
    assert [layer["choice"] for layer in layers if layer["choice"]] == ["w8a8", "w8a8"]


def test_they_are_tuned_as_they_are(tvmquant, quantized_onnx, tmp_path, brief_tuning):
    command = ["tune", quantized_onnx, "-o", tmp_path, "--trials", 2, "--threads", 1, "--json"]
    assert tvmquant(*command).json()["layers"] == 2
