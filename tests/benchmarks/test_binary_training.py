"""Training of a small ReActNet: what it sees, how it goes on, and what becomes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import binary_training, training
from benchmarks.models import reactnet
from benchmarks.models.initialise import synthetic_images
from benchmarks.rows import RowMaker
from tvmquant.errors import DataError
from tvmquant.progress import silent_stage

BATCH = 8


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary_training, "BATCH", BATCH)
    monkeypatch.setattr(training, "BATCH", 4)


@pytest.fixture
def images() -> training.Images:
    pixels = torch.from_numpy(synthetic_images(20, binary_training.SHAPE, seed=0))
    return training.Images(pixels, torch.arange(20) % 10)


def _network() -> nn.Module:
    torch.manual_seed(0)
    blocks = reactnet._basic_blocks((32, 64), 1, reactnet._duplicated)
    stem = nn.Conv2d(3, 32, 3, stride=4, padding=1)
    return reactnet._Classifier(stem, blocks, 64, 10)


def _train(images: training.Images, checkpoint: Path, epochs: int = 3) -> nn.Module:
    network = _network()
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    nn.init.constant_(teacher[1].weight, 0.01)
    nn.init.zeros_(teacher[1].bias)
    binary_training._train(network, images, teacher, silent_stage, epochs, checkpoint, False)
    return network


def test_images_are_moved_and_mirrored(images: training.Images) -> None:
    batches = list(binary_training._augmented(images, 0))
    assert [pixels.shape for pixels, _ in batches] == [(BATCH, 3, 32, 32)] * 2
    shift = binary_training.SHIFT
    for pixels, labels in batches:
        for image, label in zip(pixels, labels, strict=True):
            candidates = images.pixels[images.labels == label]
            centre = image[:, shift:-shift, shift:-shift]
            crops = candidates.unfold(2, 24, 1).unfold(3, 24, 1).permute(0, 2, 3, 1, 4, 5)
            found = (crops == centre).flatten(3).all(3) | (crops == centre.flip(2)).flatten(3).all(
                3
            )
            assert found.any()
    again = next(binary_training._augmented(images, 0))
    other = next(binary_training._augmented(images, 1))
    assert torch.equal(again[0], batches[0][0])
    assert not torch.equal(other[0], batches[0][0])


def test_training_goes_on_where_it_ended(
    images: training.Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _train(images, tmp_path / "whole.pt").state_dict()
    augmented = binary_training._augmented

    def interrupted(images: training.Images, epoch: int) -> Any:
        if epoch == 1:
            raise KeyboardInterrupt
        return augmented(images, epoch)

    monkeypatch.setattr(binary_training, "_augmented", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _train(images, tmp_path / "parts.pt")
    monkeypatch.setattr(binary_training, "_augmented", augmented)
    parts = _train(images, tmp_path / "parts.pt").state_dict()
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
    with pytest.raises(DataError, match=r"parts\.pt: is of a training of 3 epochs.*--epochs is 4"):
        _train(images, tmp_path / "parts.pt", epochs=4)


def test_the_library_has_the_logits_of_the_twin(
    images: training.Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = _train(images, tmp_path / "checkpoint.pt")
    arrays = np.split(images.pixels.numpy(), 5)
    monkeypatch.setattr(binary_training, "open_images", lambda *_: arrays)
    make = RowMaker("binary_training", 1, {"target": "native"})
    task = binary_training.TASKS["resnet20"]
    rows = list(binary_training._deployed(make, network, images, tmp_path, task, silent_stage))
    assert [(row["config"], row["metric"]) for row in rows] == [
        ("torch", "top1"), ("twin", "top1"), ("library", "top1"), ("library", "differing"),
    ]  # fmt: skip
    assert rows[1]["value"] == rows[2]["value"]
    assert (rows[3]["value"], rows[3]["numbers"]) == (0, 200)
