"""The file of an estimate."""

import json

import pytest

from tvmquant.errors import DataError
from tvmquant.sensitivity import LayerSensitivity, Sensitivity


@pytest.fixture
def record():
    layer = LayerSensitivity(
        weight={"int8": 0.1, "int4": 1.0}, activation={"uint8": 0.2}, trace=3.0
    )
    return Sensitivity(
        method="hessian", model="m", data=None, count=4, labelled=False, losses=["cross_entropy"],
        probes=8, tolerance=0.05, relative_error=0.04, converged=True,
        layers={"a": layer, "b": layer},
        perturbation={"a": {"w8a8": 0.3, "w4a8": 1.2}, "b": {"w8a8": 0.4}},
    )  # fmt: skip


def test_what_is_saved_is_loaded(record, tmp_path):
    path = tmp_path / "sensitivity.json"
    record.save(path)
    assert Sensitivity.load(path) == record
    assert [p.name for p in tmp_path.iterdir()] == ["sensitivity.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 1}, "schema_version = 1; this version of tvmquant reads 2"),
        ({"count": 0}, "count = 0: Input should be greater than 0"),
        ({"tolerance": -1.0}, "tolerance = -1.0: "),
        ({"perturbation": {"a": {"w8a8": "much"}}}, r"perturbation\.a\.w8a8 = 'much': "),
        ({"more": 1}, "more = 1: Extra inputs are not permitted"),
    ],
)
def test_wrong_fields_are_named(record, tmp_path, change, message):
    path = tmp_path / "sensitivity.json"
    path.write_text(json.dumps(record.model_dump() | change))
    with pytest.raises(DataError, match=f"{message}.*estimate again|{message}"):
        Sensitivity.load(path)


def test_numbers_are_finite(record, tmp_path):
    path = tmp_path / "sensitivity.json"
    path.write_text(record.model_dump_json().replace("1.2", "NaN"))
    with pytest.raises(DataError, match="w4a8"):
        Sensitivity.load(path)
