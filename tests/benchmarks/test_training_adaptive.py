import dataclasses
from pathlib import Path
from types import MappingProxyType

import pytest

import tvmquant
from benchmarks import training
from benchmarks.accuracy import TASKS
from benchmarks.training import adaptive
from benchmarks.training.common import Setting
from tvmquant.progress import silent_stage


def test_methods_are_relative_to_individual_networks(
    shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = dataclasses.replace(TASKS["resnet20"], evaluation=("cifar10-test.tar", "step=200"))
    monkeypatch.setitem(TASKS, "resnet20", few)
    monkeypatch.setattr(adaptive, "IMAGES", 64)
    monkeypatch.setattr(adaptive, "WIDTHS", (8, 4))
    recipe, changes = adaptive.METHODS["coquant"]
    two = {"coquant": (recipe, {**changes, "adaptive.widths": [8, 4]})}
    monkeypatch.setattr(adaptive, "METHODS", MappingProxyType(two))
    setting = Setting(shared_dir, silent_stage, tmp_path, {"batch_size": 32})
    rows = training.run("adaptive", setting)
    found = {(row["config"], row["metric"]): float(row["value"] or 0) for row in rows}
    assert found["individual", "differing"] == found["coquant", "differing"] == 0
    assert found["individual", "delta_b"] == 100
    ratios = [found[f"coquant-w{w}", "top1"] / found[f"individual-w{w}", "top1"] for w in (8, 4)]
    assert found["coquant", "delta_b"] == pytest.approx(50 * sum(ratios))
    assert found["coquant", "most_distance"] > 0
    # read, not trained again
    monkeypatch.setattr(tvmquant, "train", None, raising=False)
    again = training.run("adaptive", setting)
    assert [row["value"] for row in again] == [row["value"] for row in rows]
