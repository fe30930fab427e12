"""A small classifier with normalizations, and data that it can learn."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.models.exporter import export_onnx

SHAPE = (3, 8, 8)
CLASSES = 4


def export(
    path: Path, *, batch_norm: bool = True, softmax: bool = False, channels: int = 16,
    classes: int = CLASSES, side: int = SHAPE[1],
) -> Path:  # fmt: skip
    """Write the network."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d if batch_norm else lambda _channels: nn.Identity()
    layers = [
        nn.Conv2d(3, 8, 3, padding=1), norm(8), nn.ReLU(),
        nn.Conv2d(8, channels, 3, stride=2, padding=1), norm(channels), nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1), norm(channels), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes),
    ]  # fmt: skip
    network = nn.Sequential(*layers, *([nn.Softmax(1)] if softmax else []))
    return export_onnx(network.eval(), path, (3, side, side), fold_bn=False)


def data(count: int = 96, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return images whose class is the quarter that is brightest, and the classes."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, count)
    images = random.normal(0.0, 1.0, (count, *SHAPE)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        row, column = 4 * (label // 2), 4 * (label % 2)
        image[label % 3, row : row + 4, column : column + 4] += 2.0
    return images, labels
