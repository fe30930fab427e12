"""A library, or a plan, says all that its network follows from, the model's file aside."""

import json
import shutil

import numpy as np
import pytest

import tvmquant
from tvmquant.allocation import Plan
from tvmquant.bit_choice import BitChoice
from tvmquant.deploy.manifest import Manifest
from tvmquant.errors import AllocationError, ArtifactError, DataError, ModelError
from tvmquant.frontend import load_onnx
from tvmquant.layers import quantizable_layers
from tvmquant.passes import pipeline
from tvmquant.quantization import apply_calibration, calibrate
from tvmquant.session import reopen
from tvmquant.simulator import simulate


@pytest.fixture
def library(branches_library, tmp_path):
    """A copy of a library of several widths, to damage."""
    folder = tmp_path / "library"
    shutil.copytree(branches_library, folder)
    return folder


def outputs(annotated, images):
    return simulate(pipeline.integerize(annotated.module), images)[0]


def test_a_library_is_what_its_network_computes(branches_library, branches_data):
    network = reopen(branches_library)
    assert network.plan == Plan.load(branches_library / "plan.json")
    assert {str(choice) for choice in network.plan.choices.values()} == {"w8a8", "w4a8"}
    assert network.preprocess == Manifest.load(branches_library).preprocess
    images = np.load(branches_data)[:3]
    model = tvmquant.load(branches_library, threads=1)
    computed = np.concatenate([model(image[None]) for image in images])
    np.testing.assert_array_equal(outputs(network.annotated, images), computed)


def test_a_library_without_a_plan_has_that_of_its_layers(small_library, small_onnx):
    network = reopen(small_library)
    graph = load_onnx(small_onnx)
    network.plan.check(quantizable_layers(graph), graph.fingerprint())
    assert {str(choice) for choice in network.plan.choices.values()} == {"w8a8"}


def test_a_plan_that_was_edited_since_is_not_the_librarys(library):
    plan = Plan.load(library / "plan.json")
    edited = {n: layer.model_copy(update={"choice": "w4a4"}) for n, layer in plan.layers.items()}
    plan.model_copy(update={"layers": edited}).save(library / "plan.json")
    assert reopen(library).plan.choices == plan.choices


def test_a_model_that_moved_is_found_where_it_is_now(library, branches_onnx, tmp_path):
    moved = tmp_path / "moved.onnx"
    shutil.copyfile(branches_onnx, moved)
    change(library, "model", "path", str(tmp_path / "gone.onnx"))
    with pytest.raises(ModelError, match=r"gone\.onnx that .* was compiled from is not there; pass "
                                         r"--model"):  # fmt: skip
        reopen(library)
    assert reopen(library, model=moved).plan == reopen(library, model=branches_onnx).plan


def test_another_model_is_refused(library, small_onnx):
    with pytest.raises(ModelError, match=r"is not the file that .* was compiled from \(SHA-256"):
        reopen(library, model=small_onnx)


def test_what_the_library_does_not_tell_is_said(library):
    kept = json.loads((library / "manifest.json").read_text())
    for path in library.glob("calibration-*.json"):
        path.unlink()
    with pytest.raises(DataError, match="holds no calibration of this library"):
        reopen(library)
    change(library, "model", "settings", kept["model"]["settings"] | {"data": None})
    with pytest.raises(ArtifactError, match="data that can be read only once"):
        reopen(library)
    change(library, "model", "settings", kept["model"]["settings"] | {"graph": "0" * 64})
    with pytest.raises(ArtifactError, match=r"reads .* otherwise than the one that compiled it"):
        reopen(library)
    change(library, "model", "settings", {})
    with pytest.raises(ArtifactError, match="does not tell what it was built from"):
        reopen(library)


def change(folder, part, key, value):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest[part][key] = value
    path.write_text(json.dumps(manifest))


@pytest.fixture
def planned(branches_onnx, branches_data, tmp_path):
    """A plan as `plan_onnx` leaves it, with a calibration among its measurements."""
    graph = load_onnx(branches_onnx)
    calibration = calibrate(graph, np.load(branches_data), batch_size=24)
    choices = {layer.id: "w4a8" for layer in quantizable_layers(graph)}
    plan = Plan(
        model=graph.name, fingerprint=graph.fingerprint(), target='{"kind":"llvm"}',
        layers={name: {"choice": choice} for name, choice in choices.items()},
    )  # fmt: skip
    path = tmp_path / "narrow.json"
    plan.save(path)
    measurements = tmp_path / "narrow-measurements"
    measurements.mkdir()
    calibration.save(measurements / "calibration-1.json")
    return path, plan, calibration


@pytest.mark.parametrize("bound_pairs", [True, False])
def test_a_plan_is_the_network_that_it_describes(
    planned, branches_onnx, branches_data, bound_pairs
):
    path, plan, calibration = planned
    network = reopen(path, model=branches_onnx, bound_pairs=bound_pairs)
    assert network.plan == plan
    choices = {name: BitChoice.parse("w4a8") for name in plan.layers}
    expected = apply_calibration(
        load_onnx(branches_onnx), calibration, choices=choices, bound_pairs=bound_pairs
    )
    images = np.load(branches_data)[:2]
    np.testing.assert_array_equal(outputs(network.annotated, images), outputs(expected, images))


def test_of_several_calibrations_one_is_named(planned, branches_onnx, tmp_path):
    path, _, calibration = planned
    other = path.with_name("narrow-measurements") / "calibration-2.json"
    calibration.save(other)
    with pytest.raises(DataError, match=r"2 calibrations of the model.*pass --calibration"):
        reopen(path, model=branches_onnx)
    assert reopen(path, model=branches_onnx, calibration=other).plan
    for file in other.parent.iterdir():
        file.unlink()
    with pytest.raises(DataError, match="holds no calibration of the model"):
        reopen(path, model=branches_onnx)


def test_a_plan_needs_its_model(planned, small_onnx, tmp_path):
    path, _, _ = planned
    with pytest.raises(ModelError, match="does not tell where its model is; pass --model"):
        reopen(path)
    with pytest.raises(AllocationError, match=r"which the model has not|no choice for"):
        reopen(path, model=small_onnx)
    with pytest.raises(DataError, match="does not exist; expected a folder"):
        reopen(tmp_path / "nothing")
