"""The convolutions of the benchmarks' networks, and of some like those that people have."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import nn

from benchmarks import models
from tvmquant.schedules.conv2d_spec import Conv2DSpec
from tvmquant.schedules.epilogue import Epilogue

# height, width, channels, outputs, kernel, strides: of detectors (YOLOv5/v8 at 640 and 480x288),
# of text recognition (maps of 1 or 3 rows), of audio (1 row), of faces, of super-resolution
REAL = [
    (640, 640, 3, 16, (3, 3), (2, 2)), (320, 320, 16, 32, (3, 3), (2, 2)),
    (160, 160, 16, 16, (3, 3), (1, 1)), (160, 160, 48, 32, (1, 1), (1, 1)),
    (80, 80, 32, 32, (3, 3), (1, 1)), (40, 40, 64, 64, (3, 3), (1, 1)),
    (20, 20, 128, 128, (3, 3), (1, 1)), (20, 20, 384, 256, (1, 1), (1, 1)),
    (72, 120, 24, 24, (3, 3), (1, 1)), (36, 60, 80, 85, (1, 1), (1, 1)),
    (12, 80, 120, 120, (1, 1), (1, 1)), (3, 160, 64, 128, (3, 3), (1, 1)),
    (1, 80, 512, 97, (1, 1), (1, 1)), (1, 1500, 80, 384, (1, 3), (1, 2)),
    (1, 188, 192, 192, (1, 5), (1, 1)), (40, 51, 64, 64, (3, 3), (1, 1)),
    (112, 112, 64, 64, (3, 3), (2, 2)), (13, 13, 512, 255, (1, 1), (1, 1)),
    (180, 320, 64, 64, (3, 3), (1, 1)), (33, 47, 37, 53, (3, 3), (1, 1)),
    (1, 1, 2048, 6625, (1, 1), (1, 1)), (25, 25, 96, 6, (3, 3), (1, 1)),
]  # fmt: skip


@functools.cache
def network_layers() -> tuple[Conv2DSpec, ...]:
    """Return the distinct convolutions (but depthwise ones) and dense layers, flattened."""
    found = dict.fromkeys(_real())
    for name in models.names():
        found.update(dict.fromkeys(_layers(name)))
    return tuple(found)


def _spec(*extents: int, kernel: tuple[int, int], **more: object) -> Conv2DSpec:
    epilogue = Epilogue("int32", "uint8", 0, 255)
    return Conv2DSpec(1, *extents, kernel=kernel, epilogue=epilogue, **more).flattened()


def _real() -> Iterator[Conv2DSpec]:
    for height, width, channels, outputs, kernel, strides in REAL:
        rows, columns = kernel[0] // 2, kernel[1] // 2
        padding = (rows, columns, rows, columns)
        yield _spec(
            height, width, channels, outputs, kernel=kernel, strides=strides, padding=padding
        )


def _layers(name: str) -> list[Conv2DSpec]:
    """Run a network without memory, and note what its layers see."""
    found = []

    def note(layer: nn.Module, inputs: tuple[torch.Tensor], _output: torch.Tensor) -> None:
        if isinstance(layer, nn.Linear):
            found.append(_spec(1, 1, layer.in_features, layer.out_features, kernel=(1, 1)))
        elif layer.groups == 1:
            _, channels, height, width = inputs[0].shape
            found.append(
                _spec(
                    height, width, channels, layer.out_channels, kernel=layer.kernel_size,
                    strides=layer.stride, padding=(*layer.padding, *layer.padding),
                    dilation=layer.dilation,
                )
            )  # fmt: skip

    with torch.device("meta"):
        network = models.architecture(name).eval()
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(note)
        network(torch.empty(1, *models.input_shape(name)))
    return found
