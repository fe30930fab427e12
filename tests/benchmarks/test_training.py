import dataclasses
from pathlib import Path

import pytest

from benchmarks import training
from benchmarks.accuracy import TASKS
from tvmquant.progress import silent_stage


def test_rows_are_those_of_the_library(
    shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = dataclasses.replace(TASKS["resnet20"], evaluation=("cifar10-test.tar", "step=200"))
    monkeypatch.setitem(TASKS, "resnet20", few)
    monkeypatch.setattr(training, "TRAINING", ("cifar10-train.tar", "step=800"))
    rows = training.run(
        shared_dir,
        stage=silent_stage,
        recipe="lsq",
        changes={"epochs": 1, "batch_size": 32},
        choices=["w4a4"],
        out=tmp_path,
        threads=1,
    )
    found = {(row["config"], row["metric"]): row["value"] for row in rows}
    assert found["library-w4a4", "differing"] == 0
    assert found["library-w4a4", "top1"] == found["twin-w4a4", "top1"]
    assert float(found["library-w4a4", "top1"] or 0) > 60
    assert float(found["trained-w4a4", "minutes"] or 0) > 0
