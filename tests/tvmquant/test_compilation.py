import contextlib
import shutil

import numpy as np
import pytest

from tvmquant.compilation import compile_onnx, item_shape
from tvmquant.errors import ArtifactError, DataError, ModelError, QuantizationError, TVMQuantError


class Spy:
    """Records the stages and their progress."""

    def __init__(self):
        self.names = []
        self.progress = []

    @contextlib.contextmanager
    def __call__(self, name):
        self.names.append(name)
        yield lambda done, total: self.progress.append((name, done, total))


@pytest.fixture
def library(small_library, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(small_library, tmp_path / "library")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_second_run_finds_the_library_up_to_date(small_onnx, small_data, library):
    before = contents(library)
    spy = Spy()
    done = compile_onnx(small_onnx, small_data, out=library, threads=1, stage=spy)
    assert done.up_to_date
    assert spy.names == ["load"]
    assert contents(library) == before


def test_an_interrupted_run_is_taken_up_after_its_calibration(
    small_onnx, small_data, library, monkeypatch
):
    (library / "model.so").unlink()
    (library / "manifest.json").unlink()
    monkeypatch.setattr("tvmquant.quantization.calibrate", None)
    done = compile_onnx(small_onnx, small_data, out=library, threads=1)
    assert done.calibration_cached
    assert not done.up_to_date
    assert list(done.seconds) == ["load", "calibrate", "quantize", "build"]


def test_other_settings_need_force(small_onnx, small_data, library):
    with pytest.raises(ArtifactError, match="--force"):
        compile_onnx(small_onnx, small_data, out=library, threads=1, weight_method="minmax")
    spy = Spy()
    done = compile_onnx(
        small_onnx,
        small_data,
        out=library,
        threads=1,
        calibration_method="minmax",
        samples=10,
        force=True,
        stage=spy,
    )
    assert not done.calibration_cached
    assert spy.progress[-1] == ("calibrate", 10, 10)
    assert done.manifest.model["settings"]["calibration"] == {"method": "minmax"}


def test_a_damaged_library_is_not_up_to_date(small_onnx, small_data, library):
    (library / "model.so").write_bytes(b"")
    with pytest.raises(ArtifactError, match="--force"):
        compile_onnx(small_onnx, small_data, out=library, threads=1)


def test_the_recipe_and_the_origin_are_in_the_manifest(small_onnx, small_library):
    from tvmquant.deploy.manifest import Manifest

    manifest = Manifest.load(small_library)
    assert manifest.model["path"] == str(small_onnx)
    assert manifest.model["bytes"] == small_onnx.stat().st_size
    assert manifest.preprocess["layout"] == "NCHW"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"calibration_method": "best"}, QuantizationError, "'best' is unknown"),
        ({"percentile": 0.0}, QuantizationError, "percentile"),
        ({"calibration_method": "mse", "percentile": 99.0}, QuantizationError, "no option"),
        ({"samples": 0}, DataError, "samples = 0"),
        ({"preprocess": "nonsense"}, DataError, "nonsense"),
        ({"select": "every=2"}, DataError, "unknown"),
        ({"activation_scheme": "odd"}, TVMQuantError, "odd"),
        ({"weight_method": "odd"}, TVMQuantError, "odd"),
        ({"target": "llvm -mcpu=nonsense"}, TVMQuantError, "nonsense"),
    ],
)
def test_a_wrong_option_leaves_no_library(
    small_onnx, small_data, tmp_path, options, error, message
):
    out = tmp_path / "out"
    with pytest.raises(error, match=message):
        compile_onnx(small_onnx, small_data, out=out, threads=1, **options)
    assert not out.exists() or {path.suffix for path in out.iterdir()} <= {".json"}
    assert not (out / "manifest.json").exists()


def test_a_folder_of_something_else_is_left_alone(small_onnx, small_data, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="not an artefact"):
        compile_onnx(small_onnx, small_data, out=tmp_path, threads=1, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_data_of_another_shape_are_refused(small_onnx, tmp_path):
    with pytest.raises(DataError, match=r"\(3, 9, 9\)"):
        compile_onnx(small_onnx, np.zeros((4, 3, 9, 9), np.float32), out=tmp_path / "out")


def test_samples_are_spread_over_the_data(small_onnx, tmp_path, monkeypatch):
    seen = []

    def calibrate(graph, dataset, **_options):
        seen.extend(item[0, 0, 0] for batch, _ in dataset for item in batch)
        raise DataError("enough")

    monkeypatch.setattr("tvmquant.quantization.calibrate", calibrate)
    data = np.arange(100, dtype=np.float32)[:, None, None, None].repeat(3, 1)
    data = np.broadcast_to(data, (100, 3, 8, 8))
    with pytest.raises(DataError, match="enough"):
        compile_onnx(small_onnx, data, out=tmp_path / "out", samples=5)
    assert seen == [0, 20, 40, 60, 80]


class FakeGraph:
    def __init__(self, *shapes):
        self.inputs = [(f"input{i}", shape, "float32") for i, shape in enumerate(shapes)]
        self.input_names = tuple(name for name, _, _ in self.inputs)


def test_the_shape_of_an_item():
    assert item_shape(FakeGraph((None, 3, None, 8))) == (3, None, 8)
    with pytest.raises(ModelError, match=r"2 inputs \(input0, input1\)"):
        item_shape(FakeGraph((1, 2), (1, 3)))
    with pytest.raises(ModelError, match="scalar"):
        item_shape(FakeGraph(()))
