"""Networks of the user: rows of what compiles and of what does not, and data by file name."""

import json
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks import __main__ as command
from benchmarks import latency, real, real_data, real_inputs
from benchmarks.real_data import Recipe
from tvmquant.errors import DataError


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    return ended.value.code


@pytest.fixture
def unsupported(tmp_path):
    """A network that no importer of ours knows, but ONNX Runtime does."""
    nodes = [helper.make_node("Det", ["x"], ["y"], "determinant")]
    graph = helper.make_graph(
        nodes,
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "odd.onnx")
    return tmp_path / "odd.onnx"


def test_rows_say_what_compiles_and_why_not(small_onnx, unsupported, tmp_path, monkeypatch, capsys):
    # importing everything anew in other processes would take most of the time
    monkeypatch.setattr(latency, "in_new_process", lambda function, case: function(case))
    table, out = tmp_path / "table.toml", tmp_path / "rows.json"
    table.write_text(
        '["sm*.onnx"]\ndata = "walks"\n\n["odd.onnx"]\ndata = "walks"\ninput_shape = "x=?,3,4,4"\n'
    )
    options = ("--table", table, "--peers", "onnxruntime", "--threads", 1, "--repeats", 4)
    models = f"{small_onnx},{unsupported}"
    assert call(monkeypatch, "real", "--models", models, *options, "--json", out) == 0
    rows = json.loads(out.read_text())

    def values(model, metric):
        return {
            row["config"]: row["value"]
            for row in rows
            if row["model"] == model and row["metric"] == metric
        }

    engines = ["tvmquant-int8", "onnxruntime-float", "onnxruntime-int8"]
    assert values("small", "works") == dict.fromkeys(engines, 1.0)
    assert values("small", "float_operators") == {"tvmquant-int8": 0}
    assert values("small", "worst_sqnr_db") == values("small", "sqnr_db")
    worst = values("small", "worst_sqnr_db")
    assert list(worst) == ["tvmquant-int8", "onnxruntime-int8"]
    assert all(20 < ratio < 80 for ratio in worst.values())
    (gain,) = values("small", "gain_over_best_peer_db").values()
    assert gain == pytest.approx(worst["tvmquant-int8"] - worst["onnxruntime-int8"])
    assert values("small", "agreement")["tvmquant-int8"] > 80
    times = values("small", "latency_ms")
    assert list(times) == engines
    (ratio,) = values("small", "ratio_to_best_peer").values()
    assert ratio == pytest.approx(times["tvmquant-int8"] / times["onnxruntime-int8"])

    assert values("odd", "works")["tvmquant-int8"] == 0
    assert values("odd", "works")["onnxruntime-float"] == 1
    assert "tvmquant-int8" not in values("odd", "latency_ms")
    (reason,) = (r["reason"] for r in rows if r.get("reason") and r["config"] == "tvmquant-int8")
    assert "Det" in reason
    assert "determinant" in " ".join(capsys.readouterr().out.split())


def end(_case):
    raise real.concurrent.futures.BrokenExecutor


def refuse(_case):
    raise RuntimeError("an engine\nsays why")


def test_what_an_engine_does_is_an_outcome(monkeypatch):
    monkeypatch.setattr(latency, "in_new_process", lambda function, case: function(case))
    assert real._tried(end, None) == real.Outcome("ends its process")
    assert real._tried(refuse, None) == real.Outcome("RuntimeError: an engine says why")


@pytest.mark.parametrize(
    ("count", "batch", "calibration", "evaluation"),
    [
        (7, 1, [0, 1, 3, 4, 6], [2, 5]),
        (7, 2, [0, 1, 2, 3], [4, 5]),
        (2, 1, [0, 1], [0, 1]),
    ],
)
def test_every_third_run_is_held_out(count, batch, calibration, evaluation):
    first, second = real_inputs.split({"x": np.arange(count)}, batch)
    assert first["x"].tolist() == calibration
    assert second["x"].tolist() == evaluation


def test_data_that_fill_no_batch_are_refused():
    with pytest.raises(DataError, match="takes 4 items at once"):
        real_inputs.split({"x": np.arange(3)}, 4)


def test_several_inputs_come_from_one_file(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["y"], "add")],
        "two",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "ab"],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
    )
    onnx.save(helper.make_model(graph), tmp_path / "two.onnx")
    both = {name: np.arange(24.0).reshape(6, 4) for name in "ab"}
    np.savez(tmp_path / "both.npz", **both)
    np.savez(tmp_path / "one.npz", a=both["a"])
    path, scratch = tmp_path / "two.onnx", tmp_path
    shaped, asked, first, second, batch = real_inputs.prepare(
        path, Recipe("both.npz"), scratch, tmp_path, 6
    )
    assert (shaped, asked, batch) == (path, {}, 1)
    assert {name: array.shape for name, array in first.items()} == {"a": (4, 4), "b": (4, 4)}
    assert {array.dtype for array in second.values()} == {np.dtype("float32")}
    with pytest.raises(DataError, match=r"one\.npz lacks b"):
        real_inputs.prepare(path, Recipe("one.npz"), scratch, tmp_path, 6)
    with pytest.raises(DataError, match=r"a \.npz that holds a, b"):
        real_inputs.prepare(path, Recipe("walks"), scratch, tmp_path, 6)
    with pytest.raises(DataError, match="no input c; it has a, b"):
        real_inputs.prepare(path, Recipe("both.npz", input_shape="c=1,4"), scratch, tmp_path, 6)


def test_asked_shapes_are_declared_for_the_other_engines(unsupported, tmp_path):
    recipe = Recipe("walks", input_shape="x=2,3,4,4")
    shaped, asked, first, _, batch = real_inputs.prepare(
        unsupported, recipe, tmp_path, tmp_path, 12
    )
    dims = onnx.load(shaped).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [2, 3, 4, 4]
    assert asked == {"x": (2, 3, 4, 4)}
    assert batch == 2
    assert first["x"].shape == (8, 3, 4, 4)


def test_the_table_of_known_networks_is_valid():
    recipes = real_data.read_table(real_data.DEFAULT_TABLE)
    for recipe in recipes.values():
        if recipe.data in real_data.SYNTHETIC:
            assert recipe.options.keys() <= {*real_data.SYNTHETIC[recipe.data].__kwdefaults__}


def test_the_first_pattern_that_fits_is_taken(tmp_path):
    recipes = {"net.onnx": Recipe("a"), "n*.onnx": Recipe("b")}
    found = [
        real_data.find_recipe(recipes, tmp_path / name) for name in ("net.onnx", "next.onnx", "x")
    ]
    assert found == [Recipe("a"), Recipe("b"), None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["a.onnx"]\nscale = 1.0\n', "'a.onnx' says no data"),
        ("data = 'x'\n", "'data' says no data"),
        ("[", "table.toml: "),
        (None, "table.toml: .*No such file"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(text, message, tmp_path):
    path = tmp_path / "table.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        real_data.read_table(path)


def test_what_is_missing_is_named_before_anything_runs(small_onnx, tmp_path, monkeypatch, capsys):
    other = tmp_path / "other.onnx"
    other.write_bytes(small_onnx.read_bytes())
    for models, named in (
        (tmp_path / "no.onnx", "no.onnx is not there"),
        (other, '["other.onnx"]'),
    ):
        options = ("--data", "walks") if models != other else ()
        assert call(monkeypatch, "real", "--models", models, *options) == 2
        assert named in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", real_data.SYNTHETIC)
def test_synthetic_data_differ_between_items_and_repeat_themselves(name):
    shape = (1, 24, 40) if name == "text_lines" else (24, 40)
    items = real_data.SYNTHETIC[name](3, shape)
    assert items.shape == (3, *shape)
    assert np.isfinite(items).all()
    assert not np.array_equal(items[0], items[1])
    np.testing.assert_array_equal(items, real_data.SYNTHETIC[name](3, shape))


def test_synthetic_data_need_a_shape():
    with pytest.raises(DataError, match="say its input_shape"):
        Recipe("tones").items((1, None), None, 4)


def test_bands_lie_along_the_axis_that_is_asked():
    first = real_data.spectra(2, (8, 30))
    last = real_data.spectra(2, (30, 8, 1), bands=1, scale=2.0, offset=1.0)
    np.testing.assert_allclose(2 * first.transpose(0, 2, 1) + 1, last[..., 0], rtol=1e-5)


def test_files_go_through_the_recipe(tmp_path):
    np.save(tmp_path / "images.npy", np.full((5, 6, 6, 3), 51, np.uint8))
    recipe = Recipe("images.npy", {"crop": 4, "scale": 1 / 255})
    items = recipe.items((3, 4, 4), tmp_path, 3)
    assert items.shape == (3, 3, 4, 4)
    np.testing.assert_allclose(items, 0.2)
