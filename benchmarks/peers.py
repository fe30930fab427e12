"""The engines that tvmquant is measured against.

ONNX Runtime quantizes a float model after training; OpenVINO reads the same quantized file, so that
both execute one network.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.optional_packages import require
from benchmarks.post_training import Feeds, quantize_with_onnxruntime


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
        ort = require("onnxruntime")
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
        core = require("openvino").Core()
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
        require(engine)
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
