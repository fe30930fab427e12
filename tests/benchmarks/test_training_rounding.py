import dataclasses
from pathlib import Path

import pytest

import tvmquant
from benchmarks import training
from benchmarks.accuracy import TASKS
from benchmarks.training import rounding
from benchmarks.training.common import Setting
from tvmquant.progress import silent_stage


def test_rounding_anew_is_beside_the_nearest(
    shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = dataclasses.replace(
        TASKS["resnet20"],
        calibration=("cifar10-test.tar", "step=200"),
        evaluation=("cifar10-test.tar", "step=200"),
    )
    monkeypatch.setitem(TASKS, "resnet20", few)
    monkeypatch.setattr(rounding, "MODEL", "resnet20")
    monkeypatch.setattr(rounding, "CHOICES", ("w3a8",))
    monkeypatch.setattr(rounding, "RECIPES", ("adaround",))
    setting = Setting(shared_dir, silent_stage, tmp_path, {"reconstruction.steps": 5})
    rows = training.run("rounding", setting)
    found = {(row["config"], row["metric"]): float(row["value"] or 0) for row in rows}
    assert found["w3a8-nearest", "top1"] > 50
    assert found["w3a8-adaround", "top1"] > 50
    assert found["w3a8-adaround", "cpu_minutes"] > 0
    # read, not found again
    monkeypatch.setattr(tvmquant, "reconstruct", None, raising=False)
    assert [row["value"] for row in training.run("rounding", setting)] == [r["value"] for r in rows]
