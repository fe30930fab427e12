"""Accuracy of networks that were trained at their bit widths: that of their libraries."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import torch

from benchmarks.rows import Row
from benchmarks.training import (
    adaptive,
    binary,
    gradient_shapes,
    importance,
    learned_widths,
    quantization_aware,
    rounding,
    training_step,
)
from benchmarks.training.common import Setting
from tvmquant.errors import DataError

METHODS: Final[Mapping[str, Callable[[Setting], list[Row]]]] = MappingProxyType(
    {
        name: functools.partial(quantization_aware.rows, name=name)
        for name in quantization_aware.PRESETS
    }
    | {name: functools.partial(binary.rows, name=name) for name in binary.RECIPES}
    | {
        "adaptive": adaptive.rows,
        "fdqmp": learned_widths.rows,
        "limpq": importance.rows,
        "rounding": rounding.rows,
        "shapes": gradient_shapes.rows,
        "step": training_step.rows,
    }
)


def run(method: str, setting: Setting) -> list[Row]:
    """Return the rows of one of `METHODS`.

    Raises
    ------
    DataError, TrainingError, QuantizationError
        When there is no such method, or a file is not there, or a change is none.
    """
    if method not in METHODS:
        raise DataError(f"--method {method!r}; expected one of {', '.join(METHODS)}")
    torch.set_num_threads(setting.threads)
    return METHODS[method](setting)
