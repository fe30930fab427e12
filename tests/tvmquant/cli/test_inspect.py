def test_a_library_and_its_model_have_the_same_layers(tvmquant, small_onnx, small_library):
    library = tvmquant("inspect", small_library, "--json").json()
    model = tvmquant("inspect", small_onnx, "--json").json()
    assert (library["kind"], model["kind"]) == ("library", "model")
    assert [layer["id"] for layer in library["layers"]] == [
        layer["id"] for layer in model["layers"]
    ]
    assert model["inputs"] == [{"name": "x", "shape": [None, 3, 8, 8], "dtype": "float32"}]


def test_tables(tvmquant, small_onnx, small_library):
    library = tvmquant("inspect", small_library).stdout
    assert "float32 1x3x8x8" in library
    assert "w8a8" in library
    model = tvmquant("inspect", small_onnx, "--target", "haswell").stdout
    assert "float32 ?x3x8x8" in model
    assert "haswell" in model


def test_quiet_shows_tables_only(tvmquant, small_onnx):
    loud, quiet = tvmquant("inspect", small_onnx), tvmquant("inspect", small_onnx, "--quiet")
    assert loud.stderr.startswith("inspect: ")
    assert quiet.stderr == ""
    assert quiet.stdout == loud.stdout


def test_what_stays_float_is_listed(tvmquant, monkeypatch, small_library):
    report = tvmquant("inspect", small_library, "--json").json()
    report["float_audit"] = [{"op": "softmax", "node": "last", "reason": "no integer form"}]
    monkeypatch.setattr("tvmquant.cli.inspect._describe_library", lambda _folder, _width: report)
    text = tvmquant("inspect", small_library).stdout
    assert "computed in float" in text
    assert "no integer form" in text


def test_wrong_subjects(tvmquant, tmp_path, small_onnx):
    (tmp_path / "text.onnx").write_text("text")
    assert "does not exist" in tvmquant("inspect", tmp_path / "nothing", code=2).stderr
    assert "not an ONNX file" in tvmquant("inspect", tmp_path / "text.onnx", code=2).stderr
    assert "manifest.json" in tvmquant("inspect", tmp_path, code=2).stderr
    assert "odd" in tvmquant("inspect", small_onnx, "--target", "-mcpu=odd", code=2).stderr
