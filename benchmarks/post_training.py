"""The tools of others that quantize an ONNX file after training: ONNX Runtime's and NNCF."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.optional_packages import require
from tvmquant.atomic_write import atomic_write
from tvmquant.errors import DataError

if TYPE_CHECKING:
    import onnx

# arrays by the name of the input that takes them
Feeds: TypeAlias = "Mapping[str, NDArray[Any]]"
# each for the only input, or for every input by name; batch first
Batches: TypeAlias = "Iterable[NDArray[np.float32] | Feeds]"

# per-channel QuantizeLinear came with 13
SMALLEST_QDQ_OPSET = 13
# activations unsigned with zero points, per tensor; weights signed, symmetric, per channel
UNSIGNED_PER_CHANNEL = {
    "quant_format": "QDQ",
    "activation_type": "QUInt8",
    "weight_type": "QInt8",
    "per_channel": True,
}


def quantize_with_onnxruntime(
    model: str | Path,
    batches: Batches,
    output: str | Path,
    *,
    options: Mapping[str, Any] = UNSIGNED_PER_CHANNEL,
    reduce_range: bool = False,
) -> Path:
    """Quantize a float model after training with ONNX Runtime's own tool, ranges by minmax.

    Parameters
    ----------
    model : str or pathlib.Path
        Float ONNX file.
    batches : iterable of numpy.ndarray, or of mappings from the name of an input to an array
        Calibration inputs, float32 for the only input, batch first.
    output : str or pathlib.Path
        The quantized file to write. It appears complete or not at all.
    options : mapping
        Of ``onnxruntime.quantization.quantize_static``; its formats and types by their names.
    reduce_range : bool
        Quantize weights to 7 bits, so that CPUs without VNNI, which add two products in 16 bits,
        cannot saturate.

    Returns
    -------
    pathlib.Path
        The file written.

    Raises
    ------
    DataError
        If there is no calibration batch.
    TVMQuantError
        If ONNX Runtime is not installed.
    """
    require("onnxruntime")
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    output = Path(output)
    loaded = onnx.load(str(model))
    name = _first_input(loaded)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = _feeds(name, batches)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self.feeds, None)

    kinds = {"quant_format": QuantFormat, "activation_type": QuantType, "weight_type": QuantType}
    named = {key: kinds[key][value] if key in kinds else value for key, value in options.items()}
    with (
        tempfile.TemporaryDirectory(prefix="tvmquant-") as folder,
        atomic_write(output) as quantized,
    ):
        raw, prepared = (str(Path(folder, stem)) for stem in ("raw", "prepared"))
        onnx.save(_at_least_opset(loaded, SMALLEST_QDQ_OPSET), raw)
        try:
            quant_pre_process(raw, prepared, skip_symbolic_shape=True)
        except Exception:  # of any kind; the tool then quantizes fewer operators
            prepared = raw
        quantize_static(prepared, str(quantized), Reader(), reduce_range=reduce_range, **named)
    return output


def quantize_with_nncf(
    model: str | Path, batches: Batches, output: str | Path, *, preset: str = "performance"
) -> Path:
    """Quantize a float model after training with NNCF.

    QDQ; weights signed, symmetric, per channel; biases corrected and float; activations of
    depthwise convolutions per channel.

    Parameters
    ----------
    model, batches, output
        As of `quantize_with_onnxruntime`.
    preset : str
        ``performance``, for symmetric activations, unsigned where they cannot be negative, or
        ``mixed``, for asymmetric ones.

    Returns
    -------
    pathlib.Path
        The file written.

    Raises
    ------
    DataError
        If there is no calibration batch.
    TVMQuantError
        If NNCF is not installed.
    """
    nncf = require("nncf")
    import onnx

    nncf.set_log_level("ERROR")
    loaded = onnx.load(str(model))
    feeds = list(_feeds(_first_input(loaded), batches))
    quantized = nncf.quantize(
        _at_least_opset(loaded, SMALLEST_QDQ_OPSET),
        nncf.Dataset(feeds),
        preset=nncf.QuantizationPreset(preset),
        subset_size=len(feeds),
    )
    with atomic_write(Path(output)) as part:
        onnx.save(quantized, str(part))
    return Path(output)


def _first_input(model: onnx.ModelProto) -> str:
    constants = {tensor.name for tensor in model.graph.initializer}
    return next(value.name for value in model.graph.input if value.name not in constants)


def _feeds(
    name: str, batches: Iterable[NDArray[np.float32] | Feeds]
) -> Iterator[dict[str, NDArray[Any]]]:
    empty = True
    for batch in batches:
        empty = False
        if isinstance(batch, Mapping):
            yield {key: np.ascontiguousarray(array) for key, array in batch.items()}
        else:
            yield {name: np.ascontiguousarray(batch, dtype=np.float32)}
    if empty:
        raise DataError(
            "the calibration data holds no batch; expected at least one float32 array, batch first"
        )


def _at_least_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    import onnx.version_converter

    versions = {entry.domain: entry.version for entry in model.opset_import}
    if versions[""] >= opset:
        return model
    try:
        return onnx.version_converter.convert_version(model, opset)
    except (RuntimeError, onnx.version_converter.ConvertError):
        return model  # ONNX Runtime's tool then does with it what it can
