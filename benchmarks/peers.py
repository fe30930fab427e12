"""The engines that tvmquant is measured against.

ONNX Runtime quantizes a float model after training (QDQ, unsigned 8-bit activations, signed 8-bit
weights per channel); OpenVINO reads the same quantized file, so that both execute one network.
"""

from __future__ import annotations

import collections
import importlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tvmquant.atomic_write import atomic_write
from tvmquant.errors import DataError, TVMQuantError

if TYPE_CHECKING:
    import onnx

# per-channel QuantizeLinear came with 13
_SMALLEST_QDQ_OPSET = 13

# arrays by the name of the input that takes them
Feeds: TypeAlias = "Mapping[str, NDArray[Any]]"


class Peer(Protocol):
    """A network loaded into an engine, ready to run.

    Attributes
    ----------
    name : str
        Engine and precision, such as ``onnxruntime-int8``.
    """

    name: str

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the network's first output for a batch of inputs, both float32."""

    def run_all(self, feeds: Feeds) -> list[NDArray[Any]]:
        """Return all outputs for a batch of every input."""


class OnnxRuntimePeer:
    """A model in ONNX Runtime's CPU engine.

    Parameters
    ----------
    path : str or pathlib.Path
        The ONNX file, float or QDQ.
    threads : int
        Threads within an operator; operators run one after another.
    name : str
        What to call it in results.
    optimized : bool
        With all graph optimizations. Without any, the results are the reference for float: fusions
        change them.

    Raises
    ------
    TVMQuantError
        If ONNX Runtime is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int,
        name: str = "onnxruntime-int8",
        optimized: bool = True,
    ) -> None:
        ort = _require("onnxruntime")
        levels = ort.GraphOptimizationLevel
        options = ort.SessionOptions()
        options.graph_optimization_level = (
            levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
        )
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        self.name = name
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the first output for a batch of inputs, both float32."""
        return self._session.run([self._output], {self._input: inputs})[0]

    def run_all(self, feeds: Feeds) -> list[NDArray[Any]]:
        """Return all outputs for a batch of every input."""
        return list(self._session.run(None, dict(feeds)))


class OpenVINOPeer:
    """A model in OpenVINO's CPU engine, compiled for latency.

    Parameters
    ----------
    path : str or pathlib.Path
        The ONNX file, float or QDQ.
    shape : sequence of int, or mapping of str to that
        The input's shape, batch first, or those of all inputs; OpenVINO compiles for them alone.
    threads : int
        Inference threads.
    name : str
        What to call it in results.

    Raises
    ------
    TVMQuantError
        If OpenVINO is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        shape: Sequence[int] | Mapping[str, Sequence[int]],
        *,
        threads: int,
        name: str = "openvino-int8",
    ) -> None:
        core = _require("openvino").Core()
        model = core.read_model(str(path))
        shapes = isinstance(shape, Mapping)
        model.reshape({k: list(v) for k, v in shape.items()} if shapes else list(shape))
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            # float peers compute in float32 wherever they run
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self.name = name
        self._compiled = core.compile_model(model, "CPU", config)
        self._request = self._compiled.create_infer_request()

    def run(self, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the first output for a batch of inputs, both float32."""
        self._request.infer([inputs], share_inputs=True)
        return self._request.get_output_tensor(0).data.copy()

    def run_all(self, feeds: Feeds) -> list[NDArray[Any]]:
        """Return all outputs for a batch of every input."""
        self._request.infer(dict(feeds), share_inputs=True)
        return [tensor.data.copy() for tensor in self._request.output_tensors]

    def executed_precisions(self) -> dict[str, dict[str, int]]:
        """Count the layers that were really compiled, by type and arithmetic.

        Returns
        -------
        dict
            Layer type (``Convolution``, ``FullyConnected``, ...) to a dict from precision (``u8``,
            ``i8``, ``f32``) to the number of layers.
        """
        counts: dict[str, dict[str, int]] = {}
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            info = node.get_rt_info()
            if "layerType" not in info or "runtimePrecision" not in info:
                continue
            kind, precision = (info[key].astype(str) for key in ("layerType", "runtimePrecision"))
            counts.setdefault(kind, collections.Counter())[precision] += 1
        return {kind: dict(of_kind) for kind, of_kind in counts.items()}


def quantize_with_onnxruntime(
    model: str | Path,
    batches: Iterable[NDArray[np.float32] | Feeds],
    output: str | Path,
    *,
    reduce_range: bool = False,
) -> Path:
    """Quantize a float model after training with ONNX Runtime's own tool.

    QDQ, activations unsigned 8 bits with zero points, per tensor, minmax; weights signed 8 bits,
    symmetric, per channel.

    Parameters
    ----------
    model : str or pathlib.Path
        Float ONNX file.
    batches : iterable of numpy.ndarray, or of mappings from the name of an input to an array
        Calibration inputs, float32 for the only input, batch first.
    output : str or pathlib.Path
        The QDQ file to write. It appears complete or not at all.
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
    _require("onnxruntime")
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
    constants = {tensor.name for tensor in loaded.graph.initializer}
    name = next(value.name for value in loaded.graph.input if value.name not in constants)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = _feeds(name, batches)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self.feeds, None)

    with (
        tempfile.TemporaryDirectory(prefix="tvmquant-") as folder,
        atomic_write(output) as quantized,
    ):
        raw, prepared = (str(Path(folder, stem)) for stem in ("raw", "prepared"))
        onnx.save(_at_least_opset(loaded, _SMALLEST_QDQ_OPSET), raw)
        try:
            quant_pre_process(raw, prepared, skip_symbolic_shape=True)
        except Exception:  # of any kind; the tool then quantizes fewer operators
            prepared = raw
        quantize_static(
            prepared,
            str(quantized),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    return output


def build_peers(
    model: str | Path,
    batches: Iterable[NDArray[np.float32]],
    shape: Sequence[int],
    folder: str | Path,
    *,
    engines: Sequence[str] = ("onnxruntime", "openvino"),
    threads: int = 1,
    reduce_range: bool = False,
) -> dict[str, Peer]:
    """Load a model into every engine, as float and as INT8.

    Parameters
    ----------
    model : str or pathlib.Path
        Float ONNX file.
    batches : iterable of numpy.ndarray
        Calibration inputs, float32, batch first.
    shape : sequence of int
        Shape of the inputs that will be measured.
    folder : str or pathlib.Path
        Where the quantized file ``<model>.int8.onnx`` is written.
    engines : sequence of str
        Of "onnxruntime" and "openvino".
    threads : int
        Threads of each engine.
    reduce_range : bool
        As for `quantize_with_onnxruntime`.

    Returns
    -------
    dict
        ``<engine>-float`` and ``<engine>-int8`` to the peer of that name.

    Raises
    ------
    ValueError
        If an engine is unknown.
    TVMQuantError
        If an engine is not installed. OpenVINO's INT8 needs ONNX Runtime too.
    DataError
        If there is no calibration batch.
    """
    for engine in engines:
        if engine not in ("onnxruntime", "openvino"):
            raise ValueError(f"unknown engine {engine!r}; expected onnxruntime or openvino")
        _require(engine)
    quantized = Path(folder, f"{Path(model).stem}.int8.onnx")
    quantize_with_onnxruntime(model, batches, quantized, reduce_range=reduce_range)
    peers: dict[str, Peer] = {}
    for engine in engines:
        for precision, path in (("float", model), ("int8", quantized)):
            name = f"{engine}-{precision}"
            peers[name] = (
                OnnxRuntimePeer(path, threads=threads, name=name)
                if engine == "onnxruntime"
                else OpenVINOPeer(path, shape, threads=threads, name=name)
            )
    return peers


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


def _require(package: str) -> ModuleType | Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise TVMQuantError(
            f"{package} is not installed, and the comparison needs it; run "
            "`pip install tvmquant[peers]` or leave that engine out"
        ) from error
