import json

import pytest

from tvmquant.errors import DataError
from tvmquant.mixed_precision import LayerRecord, MixedPrecisionRecord, PlanPoint

POINT = PlanPoint(name="chosen", size_bytes=9, bops=90, perturbation=0.5, predicted_ms=1.5)
RECORD = MixedPrecisionRecord(
    model="abc", target="llvm", threads=1, sensitivity="hessian", budgets={"size": "0.8x"},
    fixed_ms=0.1, chosen=POINT, uniform=[POINT], frontier=[],
    layers=[
        LayerRecord(
            id="conv", op="conv2d", macs=9, weights=3, outputs=1, group="x", position="first",
            choice="w8a8", reason="first layer", perturbation={"w8a8": 0.5},
            milliseconds={"w8a8": 1.4},
        )
    ],
)  # fmt: skip


def test_what_was_saved_is_read(tmp_path):
    RECORD.save(tmp_path / "record.json")
    assert MixedPrecisionRecord.load(tmp_path / "record.json") == RECORD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threads": 0}, "threads = 0"),
        ({"chosen": {**POINT.model_dump(), "predicted_ms": None}}, "chosen.predicted_ms = None"),
        ({"layers": [{"id": "conv"}]}, "layers.0.op"),
        ({"schema_version": 0}, "schema_version = 0"),
    ],
)
def test_damage_is_named(tmp_path, change, message):
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**RECORD.model_dump(), **change}))
    with pytest.raises(DataError) as caught:
        MixedPrecisionRecord.load(path)
    for part in ("mixed precision record", str(path), message, "with --force"):
        assert part in str(caught.value)
