"""Training of a small ReActNet: what it sees, how it goes on, and what becomes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import binary_training
from benchmarks.models import reactnet
from benchmarks.models.initialise import synthetic_images
from benchmarks.rows import RowMaker
from benchmarks.training import common
from tvmquant.errors import TrainingError
from tvmquant.progress import silent_stage
from tvmquant.training import Recipe
from tvmquant.training.items import Items

BATCH = 8


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "BATCH", 4)


@pytest.fixture
def images() -> Items:
    pixels = torch.from_numpy(synthetic_images(20, binary_training.SHAPE, seed=0))
    return Items(pixels, torch.arange(20) % 10)


def _network() -> nn.Module:
    torch.manual_seed(0)
    blocks = reactnet._basic_blocks((32, 64), 1, reactnet._duplicated)
    stem = nn.Conv2d(3, 32, 3, stride=4, padding=1)
    return reactnet._Classifier(stem, blocks, 64, 10)


def _train(images: Items, checkpoint: Path, epochs: int = 3) -> nn.Module:
    network = _network()
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    nn.init.constant_(teacher[1].weight, 0.01)
    nn.init.zeros_(teacher[1].bias)
    recipe = Recipe.read(binary_training.RECIPE, {"batch_size": BATCH, "epochs": epochs})
    binary_training._train(network, images, teacher, silent_stage, recipe, checkpoint, False)
    return network


def test_training_goes_on_where_it_ended(
    images: Items, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _train(images, tmp_path / "whole.pt").state_dict()
    batches_of = binary_training.batches_of

    def interrupted(images: Items, recipe: Recipe, epoch: int) -> Any:
        if epoch == 1:
            raise KeyboardInterrupt
        return batches_of(images, recipe, epoch)

    monkeypatch.setattr(binary_training, "batches_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _train(images, tmp_path / "parts.pt")
    monkeypatch.setattr(binary_training, "batches_of", batches_of)
    parts = _train(images, tmp_path / "parts.pt").state_dict()
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
    with pytest.raises(TrainingError, match=r"parts\.pt: is of a training whose recipe differs"):
        _train(images, tmp_path / "parts.pt", epochs=4)


def test_the_library_has_the_logits_of_the_twin(
    images: Items, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = _train(images, tmp_path / "checkpoint.pt")
    arrays = np.split(images.inputs.numpy(), 5)
    monkeypatch.setattr(binary_training, "open_images", lambda *_: arrays)
    make = RowMaker("binary_training", 1, {"target": "native"})
    task = binary_training.TASKS["resnet20"]
    rows = list(binary_training._deployed(make, network, images, tmp_path, task, silent_stage))
    assert [(row["config"], row["metric"]) for row in rows] == [
        ("torch", "top1"), ("twin", "top1"), ("library", "top1"), ("library", "differing"),
    ]  # fmt: skip
    assert rows[1]["value"] == rows[2]["value"]
    assert (rows[3]["value"], rows[3]["numbers"]) == (0, 200)
