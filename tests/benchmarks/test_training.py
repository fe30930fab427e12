import dataclasses
from pathlib import Path

import pytest

from benchmarks import training
from benchmarks.accuracy import TASKS
from benchmarks.training import common, gradient_shapes, training_step
from benchmarks.training.common import Setting
from tvmquant.errors import DataError
from tvmquant.progress import silent_stage


def test_rows_are_those_of_the_library(
    shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = dataclasses.replace(TASKS["resnet20"], evaluation=("cifar10-test.tar", "step=200"))
    monkeypatch.setitem(TASKS, "resnet20", few)
    monkeypatch.setattr(common, "TRAINING", ("cifar10-train.tar", "step=800"))
    changes = {"epochs": 1, "batch_size": 32}
    rows = training.run("w4a4", Setting(shared_dir, silent_stage, tmp_path, changes))
    found = {(row["config"], row["metric"]): row["value"] for row in rows}
    assert found["library-w4a4", "differing"] == 0
    assert found["library-w4a4", "top1"] == found["twin-w4a4", "top1"]
    assert float(found["library-w4a4", "top1"] or 0) > 60
    assert float(found["trained-w4a4", "cpu_minutes"] or 0) > 0


def test_a_method_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'w5'; expected one of w8a8, w4a4"):
        training.run("w5", Setting(tmp_path, silent_stage, tmp_path, {}))


def test_a_step_is_timed_beside_plain_torch(
    shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_step, "BATCH", 8)
    monkeypatch.setattr(training_step, "STEPS", 1)
    monkeypatch.setattr(training_step, "QUANTIZED", (("w4a4", 8),))
    rows = training.run("step", Setting(shared_dir, silent_stage, tmp_path, {}))
    ratios = {row["config"]: row["value"] for row in rows if row["metric"] == "ratio"}
    assert list(ratios) == ["step-plain-float", "step-twin-float", "step-twin-w4a4-residual8"]
    assert ratios["step-plain-float"] == 1.0


def test_a_shape_is_named_only_if_it_leads(shared_dir: Path, tmp_path: Path) -> None:
    setting = Setting(shared_dir, silent_stage, tmp_path, {})
    for first, best in (([88.0, 88.2, 88.1], "a"), ([88.0, 86.0, 87.5], "")):
        rows = gradient_shapes.summary(setting, {"b": [87.0, 87.2, 87.1], "a": first})
        assert rows[-1]["metric"] == "lead"
        assert rows[-1]["best"] == best
