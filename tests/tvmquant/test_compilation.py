import contextlib
import dataclasses
import json
import shutil

import numpy as np
import pytest

import tvmquant
from tvmquant.allocation import Plan
from tvmquant.allocation.plan import PlannedLayer
from tvmquant.bit_choice import W4A8, BitChoice
from tvmquant.compilation import compile_onnx
from tvmquant.deploy.manifest import Manifest
from tvmquant.devices.cpu import CpuDevice
from tvmquant.devices.device import missing_features
from tvmquant.errors import (
    AllocationError,
    ArtifactError,
    DataError,
    QuantizationError,
    SensitivityError,
    TuningError,
    TVMQuantError,
)
from tvmquant.layers import quantizable_layers, uniform_choices
from tvmquant.machine import Machine
from tvmquant.mixed_precision import MixedPrecisionRecord, Wishes
from tvmquant.output_record import OUTPUTS_NAME, OutputRecord
from tvmquant.schedules.isa import multiplies_in_pairs
from tvmquant.session import COMPARED, Session
from tvmquant.tuning import Database
from tvmquant.tuning.record import Record


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
    assert list(done.seconds) == ["load", "calibrate", "quantize", "build", "compare"]


def test_the_outputs_are_compared_with_the_float_model(small_onnx, small_data, library):
    record = OutputRecord.load(library / OUTPUTS_NAME)
    assert record.items == COMPARED
    (output,) = record.qualities()
    assert output.sqnr_db > 25
    done = compile_onnx(small_onnx, small_data, out=library, threads=1)
    assert done.outputs == (output,)
    # a record of another build says nothing of this one
    record.model_copy(update={"library": "0" * 64}).save(library / OUTPUTS_NAME)
    assert compile_onnx(small_onnx, small_data, out=library, threads=1).outputs == ()


def test_what_can_be_read_once_is_not_compared(small_onnx, small_data, tmp_path):
    with np.load(small_data) as data:
        images = data["images"][:4]
    done = compile_onnx(small_onnx, iter(images), out=tmp_path / "out", threads=1)
    assert done.outputs == ()
    assert "compare" not in done.seconds


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
    assert ("calibrate", 10, 10) in spy.progress
    assert spy.progress[-1] == ("compare", COMPARED, COMPARED)
    assert done.manifest.model["settings"]["calibration"] == {"method": "minmax"}


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("versions", {"tvm": "0.1.0"}),
        ("target", {"features": ["sse3"]}),
        ("target", {"triple": "aarch64-linux-gnu"}),
    ],
)
def test_a_library_of_another_version_or_processor_is_not_up_to_date(
    small_onnx, small_data, library, part, value
):
    path = library / "manifest.json"
    document = json.loads(path.read_text())
    document[part].update(value)
    path.write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=r"another processor, or by another version.*--force"):
        compile_onnx(small_onnx, small_data, out=library, threads=1)


def test_a_damaged_library_is_not_up_to_date(small_onnx, small_data, library):
    (library / "model.so").write_bytes(b"")
    with pytest.raises(ArtifactError, match="--force"):
        compile_onnx(small_onnx, small_data, out=library, threads=1)


def test_the_recipe_and_the_origin_are_in_the_manifest(small_onnx, small_library):
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


@pytest.mark.parametrize("bound_pairs", [True, False, None])
def test_the_manifest_says_which_layers_have_bounded_pairs(
    branches_onnx, branches_data, tmp_path, bound_pairs
):
    done = compile_onnx(
        branches_onnx, branches_data, out=tmp_path / "out", threads=1, bound_pairs=bound_pairs
    )
    native = multiplies_in_pairs(Machine.of("native").target)
    bounded = native if bound_pairs is None else bound_pairs
    found = {layer.id: layer.weight_pairs for layer in done.manifest.layers}
    assert (found["left"], found["right"]) == (("bounded" if bounded else "free"),) * 2
    assert all(bool(layer.weight_pairs) == bool(layer.choice) for layer in done.manifest.layers)


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


# -- mixed precision -----------------------------------------------------------------------------

BUDGET = Wishes(size="0.85x", choices=(W4A8,), sensitivity="output")


@pytest.fixture
def mixed(branches_library, tmp_path):
    """A copy of a library of mixed precision that a test may change."""
    return shutil.copytree(branches_library, tmp_path / "mixed")


@pytest.fixture
def compile_mixed(branches_onnx, branches_data, mixed, brief_timing):
    """Return a function that compiles into the copy."""

    def run(**options):
        return compile_onnx(branches_onnx, branches_data, out=mixed, threads=1, **options)

    return run


@pytest.fixture
def nothing_is_measured(monkeypatch):
    """Make measuring layers fail."""
    monkeypatch.setattr("tvmquant.sensitivity.estimate.make_quantizers", None)
    monkeypatch.setattr("tvmquant.mixed_precision.choose.measure_network", None)


def bits_of(library):
    layers = Manifest.load(library).layers
    return {layer.id: layer.choice for layer in layers if layer.macs}


def texts(plan):
    return {name: str(choice) for name, choice in plan.choices.items()}


def test_the_library_has_the_bits_of_its_plan(branches_library):
    plan = Plan.load(branches_library / "plan.json")
    assert sorted(texts(plan).values()) == ["w4a8", "w8a8", "w8a8", "w8a8", "w8a8"]
    assert bits_of(branches_library) == texts(plan)
    assert plan.budgets == {"size": "0.85x"}


def test_the_record_tells_prediction_from_measurement(branches_library):
    record = MixedPrecisionRecord.load(branches_library / "mixed-precision.json")
    plan = Plan.load(branches_library / "plan.json")
    assert {layer.id: layer.choice for layer in record.layers} == texts(plan)
    assert record.chosen.predicted_ms == pytest.approx(plan.predicted["latency"])
    assert record.chosen.measured_ms > 0
    assert record.model == plan.fingerprint
    assert [point.name for point in record.uniform] == ["w8a8", "w4a8"]


def test_a_mixed_library_computes_what_the_simulator_does(
    branches_onnx, branches_data, branches_library
):
    images = np.load(branches_data)
    graph = tvmquant.load_onnx(branches_onnx)
    choices = Plan.load(branches_library / "plan.json").choices
    calibration = tvmquant.Calibration.load(next(branches_library.glob("calibration-*.json")))
    model = tvmquant.load(branches_library)
    rounding = model.manifest.model["settings"]["quantization"]
    assert rounding["bound_pairs"] == multiplies_in_pairs(Machine.of("native").target)
    quantized = tvmquant.quantize(graph, calibration, choices=choices, **rounding)
    for image in images[:4, None]:
        np.testing.assert_array_equal(model(image), tvmquant.simulate(quantized, image)[0])


@pytest.mark.parametrize(
    ("choice", "scheme"),
    [("w4a4", "asymmetric"), ("w8a4", "asymmetric"), ("w4a8g32", "asymmetric"),
     ("w6a5", "asymmetric"), ("w4a8", "symmetric"), ("w4a4", "symmetric")],
)  # fmt: skip
def test_a_narrow_library_computes_what_the_simulator_does(
    branches_onnx, branches_data, tmp_path, choice, scheme
):
    graph, images, out = tvmquant.load_onnx(branches_onnx), np.load(branches_data), tmp_path / "out"
    wanted = BitChoice.parse(choice)
    taken = uniform_choices(quantizable_layers(graph), wanted, pin_ends=False)
    plan = Plan(
        model=graph.name,
        fingerprint=graph.fingerprint(),
        layers={name: PlannedLayer(choice=str(own)) for name, own in taken.items()},
    )
    expected = dict.fromkeys(plan.layers, choice)
    if wanted.weight.group:  # for which there is no kernel
        expected["depthwise"] = "w8a8"
    assert texts(plan) == expected
    plan.save(tmp_path / "plan.json")
    options = {"activation_scheme": scheme}
    compile_onnx(
        branches_onnx, branches_data, out=out, threads=1, plan=tmp_path / "plan.json", **options
    )
    calibration = tvmquant.Calibration.load(next(out.glob("calibration-*.json")))
    model = tvmquant.load(out)
    rounding = model.manifest.model["settings"]["quantization"]
    assert rounding.items() >= options.items()
    quantized = tvmquant.quantize(graph, calibration, choices=plan.choices, **rounding)
    for image in images[:4, None]:
        np.testing.assert_array_equal(model(image), tvmquant.simulate(quantized, image)[0])


@pytest.mark.usefixtures("nothing_is_measured")
def test_a_mixed_library_is_up_to_date(mixed, compile_mixed):
    before = contents(mixed)
    done = compile_mixed(wishes=BUDGET)
    assert done.up_to_date
    assert done.record == MixedPrecisionRecord.load(mixed / "mixed-precision.json")
    assert contents(mixed) == before


@pytest.mark.usefixtures("nothing_is_measured")
def test_another_budget_costs_no_measurement(mixed, compile_mixed):
    wishes = dataclasses.replace(BUDGET, size="0.8x", bops="0.9x")
    with pytest.raises(ArtifactError, match="--force"):
        compile_mixed(wishes=wishes)
    done = compile_mixed(wishes=wishes, force=True)
    assert done.calibration_cached
    assert done.record.budgets == {"size": "0.8x", "bops": "0.9x"}
    bits = bits_of(mixed)
    assert bits == texts(Plan.load(mixed / "plan.json"))
    assert (bits["left"], bits["right"]) == ("w4a8", "w4a8")


@pytest.mark.usefixtures("nothing_is_measured")
def test_a_run_that_was_interrupted_before_it_measured_is_taken_up(mixed, compile_mixed):
    (mixed / "mixed-precision.json").unlink()
    done = compile_mixed(wishes=BUDGET)
    assert not done.up_to_date
    assert done.record.chosen.measured_ms > 0
    assert compile_mixed(wishes=BUDGET).up_to_date


@pytest.mark.usefixtures("nothing_is_measured")
def test_nothing_of_an_earlier_plan_stays(mixed, compile_mixed):
    (mixed / "report.html").write_text("of the mixed library")
    done = compile_mixed(force=True)
    assert done.record is None
    assert set(bits_of(mixed).values()) == {"w8a8"}
    assert {path.suffix for path in mixed.iterdir()} == {".json", ".so"}
    assert not (mixed / "plan.json").exists()
    assert not (mixed / "mixed-precision.json").exists()
    assert compile_mixed().up_to_date


@pytest.mark.usefixtures("nothing_is_measured")
def test_a_plan_edited_by_hand_is_built(mixed, compile_mixed):
    path = mixed / "plan.json"
    text = json.loads(path.read_text())
    predicted = text["predicted"]
    for name, choice in {"left": "W4A4", "right": "w8a4", "head": "w4a8g32"}.items():
        text["layers"][name] = {"choice": choice}
    path.write_text(json.dumps(text))
    with pytest.raises(ArtifactError, match="--force"):
        compile_mixed(plan=path)
    compile_mixed(plan=path, force=True)
    assert bits_of(mixed) == {
        "stem": "w8a8", "left": "w4a4", "right": "w8a4", "depthwise": "w8a8", "head": "w4a8g32",
    }  # fmt: skip
    plan = Plan.load(path)
    assert plan.layers["head"].choice == "w4a8g32"
    assert sorted(plan.predicted) == ["bops", "size"]  # what needs no measurement
    assert plan.predicted["bops"] < predicted["bops"]
    assert not (mixed / "mixed-precision.json").exists()
    assert compile_mixed(plan=path).up_to_date


def test_what_is_measured_outlasts_an_interruption(
    branches_onnx, branches_data, tmp_path, monkeypatch, brief_timing
):
    out = tmp_path / "out"

    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tvmquant.mixed_precision.choose.measure_network", interrupt)
        with pytest.raises(KeyboardInterrupt):
            compile_onnx(branches_onnx, branches_data, out=out, threads=1, wishes=BUDGET)
    assert sorted(path.name.partition("-")[0] for path in out.iterdir()) == [
        "calibration", "sensitivity",
    ]  # fmt: skip
    monkeypatch.setattr("tvmquant.sensitivity.estimate.make_quantizers", None)
    done = compile_onnx(branches_onnx, branches_data, out=out, threads=1, wishes=BUDGET)
    assert done.calibration_cached
    assert done.record.chosen.measured_ms > 0


@pytest.mark.usefixtures("brief_tuning")
def test_layers_are_tuned_before_they_are_built(small_onnx, small_data, tmp_path):
    spy = Spy()
    out = tmp_path / "out"
    options = {"out": out, "threads": 1}
    done = compile_onnx(small_onnx, small_data, tune_seconds=1.0, stage=spy, **options)
    assert spy.names == ["load", "calibrate", "tune", "quantize", "build", "compare"]
    assert done.untuned == ()
    database = Database(out / "table", Machine.of("native", 1), create=False)
    assert {record.default for record in database.records()} >= {True}
    # what was measured is found again, and not measured again
    table = database.folder
    assert compile_onnx(small_onnx, small_data, table=table, **options).up_to_date
    assert compile_onnx(small_onnx, small_data, tune_seconds=1.0, **options).up_to_date

    images = np.load(small_data)["images"]
    graph = tvmquant.load_onnx(small_onnx)
    calibration = tvmquant.Calibration.load(next(out.glob("calibration-*.json")))
    model = tvmquant.load(out)
    rounding = model.manifest.model["settings"]["quantization"]
    (expected,) = tvmquant.simulate(tvmquant.quantize(graph, calibration, **rounding), images[:1])
    np.testing.assert_array_equal(model(images[:1]), expected)


@pytest.mark.skipif(
    bool(missing_features(CpuDevice(), Machine.of("haswell", 1).required_features)),
    reason="needs a processor with AVX2",
)
@pytest.mark.usefixtures("brief_tuning")
@pytest.mark.parametrize("portable", [True, False])
def test_the_kernels_that_are_built_are_those_that_are_tuned(
    branches_onnx, branches_data, tmp_path, portable
):
    """Their kernels differ where sums of two products saturate."""
    options = {"target": "haswell", "threads": 1, "bound_pairs": portable, "tune_seconds": 3.0}
    done = compile_onnx(branches_onnx, branches_data, out=tmp_path / "out", **options)
    assert done.untuned == ()


def test_a_library_that_is_damaged_before_it_is_compared_is_an_error(
    small_onnx, small_data, tmp_path, monkeypatch
):
    def build_damaged(session, **options):
        built = build_whole(session, **options)
        (session.folder / "model.so").write_bytes(b"half of it")
        return built

    build_whole = Session.build
    monkeypatch.setattr(Session, "build", build_damaged)
    with pytest.raises(ArtifactError, match=r"model\.so"):
        compile_onnx(small_onnx, small_data, out=tmp_path / "out", threads=1)


def test_a_library_for_another_processor_is_not_compared(
    small_onnx, small_data, tmp_path, monkeypatch
):
    monkeypatch.setattr("tvmquant.devices.cpu.CpuDevice.architecture", lambda _device: "s390x")
    done = compile_onnx(small_onnx, small_data, out=tmp_path / "out", threads=1)
    assert done.outputs == ()


def test_further_measurements_make_a_library_out_of_date(mixed, compile_mixed, tmp_path):
    database = Database(tmp_path / "table", Machine.of("native", 1))
    done = compile_mixed(table=database.folder, force=True)
    assert sorted(done.untuned) == ["depthwise", "head", "left", "right", "stem"]
    assert compile_mixed(table=database.folder).up_to_date
    database.append(
        Record(key="k", family="f", spec={}, tiling={}, error="failed", time="now", cpu="c")
    )
    with pytest.raises(ArtifactError, match="other settings"):
        compile_mixed(table=database.folder)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"wishes": BUDGET, "plan": "plan.json"}, AllocationError, "leave out either the plan"),
        ({"table": "nowhere"}, TuningError, "nowhere"),
        ({"plan": "nowhere.json"}, DataError, "plan 'nowhere.json' cannot be read"),
        ({"wishes": Wishes(size="0.3x")}, AllocationError, "size cannot be"),
        ({"wishes": Wishes(pinned={"lefd": W4A8})}, AllocationError, "'lefd'"),
        ({"wishes": Wishes(latency="soon")}, AllocationError, "latency budget 'soon'"),
        ({"wishes": Wishes(sensitivity="guess")}, SensitivityError, "'guess' is unknown"),
    ],
)
def test_a_wrong_wish_costs_no_measurement(
    branches_onnx, branches_data, tmp_path, monkeypatch, options, error, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tvmquant.quantization.calibrate", None)
    with pytest.raises(error, match=message):
        compile_onnx(branches_onnx, branches_data, out="out", threads=1, **options)
    assert list(tmp_path.iterdir()) == []
