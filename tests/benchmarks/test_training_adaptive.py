from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

import tvmquant
from benchmarks import training
from benchmarks.accuracy import TASKS, Task
from benchmarks.training import adaptive, common
from benchmarks.training.common import Setting
from tests.tvmquant.training import small
from tvmquant.progress import silent_stage


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of a small network and its data, which stand for those of the task."""
    for name in ("models", "data"):
        (tmp_path / name).mkdir()
    small.export(tmp_path / "models" / "small.onnx")
    for seed, name in enumerate(("training", "test")):
        images, labels = small.data(100, seed)
        np.savez(tmp_path / "data" / f"{name}.npz", images=images, labels=labels)
    task = Task("small.onnx", "none", ("training.npz", None), ("test.npz", None), batch=50)
    monkeypatch.setitem(TASKS, "resnet20", task)
    monkeypatch.setattr(common, "TRAINING", ("training.npz", None))
    return tmp_path


def test_methods_are_relative_to_individual_networks(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptive, "IMAGES", 64)
    monkeypatch.setattr(adaptive, "WIDTHS", (8, 4))
    recipe, changes = adaptive.METHODS["coquant"]
    two = {"coquant": (recipe, {**changes, "adaptive.widths": [8, 4]})}
    monkeypatch.setattr(adaptive, "METHODS", MappingProxyType(two))
    setting = Setting(folder, silent_stage, folder / "out", {"batch_size": 32})
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
