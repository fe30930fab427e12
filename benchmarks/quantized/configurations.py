"""How files are quantized: the tools of others, each with the options that users choose."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.post_training import (
    UNSIGNED_PER_CHANNEL,
    Batches,
    quantize_with_nncf,
    quantize_with_onnxruntime,
)
from tvmquant.errors import DataError

# of a file that is quantized already
AS_IS = "as-is"


def _onnxruntime(**options: Any) -> Callable[..., Path]:
    return functools.partial(quantize_with_onnxruntime, options={**UNSIGNED_PER_CHANNEL, **options})


# named by the types of activations and weights; per tensor, QDQ and minmax where not said
CONFIGURATIONS: dict[str, Callable[..., Path]] = {
    "s8s8": _onnxruntime(
        activation_type="QInt8", per_channel=False, extra_options={"ActivationSymmetric": True}
    ),
    "s8s8-asymmetric": _onnxruntime(activation_type="QInt8", per_channel=False),
    "u8s8-channel": _onnxruntime(),
    # the tool gives unsigned weights zero points
    "u8u8": _onnxruntime(weight_type="QUInt8", per_channel=False),
    "qoperator": _onnxruntime(quant_format="QOperator"),
    "nncf": functools.partial(quantize_with_nncf, preset="performance"),
    "nncf-mixed": functools.partial(quantize_with_nncf, preset="mixed"),
}


def check_configuration(name: str) -> None:
    """Raise `DataError` where there is none of that name."""
    if name not in CONFIGURATIONS and name != AS_IS:
        known = ", ".join((*CONFIGURATIONS, AS_IS))
        raise DataError(f"--configs: {name!r} is unknown; expected some of {known}")


def quantized_file(name: str, model: Path, batches: Batches, output: Path) -> Path:
    """Return a model quantized in a configuration; written if it is not there yet.

    Raises
    ------
    DataError
        If there is no calibration batch.
    TVMQuantError
        If the tool is not installed.
    """
    if name == AS_IS:
        return model
    if not output.is_file():
        CONFIGURATIONS[name](model, batches, output)
    return output
