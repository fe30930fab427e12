"""Random graphs that ONNX Runtime quantized, and what must hold of what is imported of them.

``python -m tests.tvmquant.random_quantized --count 1000`` examines many, each in a process of its
own, prints those that are wrong, shortened as far as they stay wrong, and keeps them with
``--out``.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import traceback
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.quantized.tensors import (
    QuantizedTensor,
    given,
    integer_operators,
    layer_by_layer,
    quantized_tensors,
    result,
    with_shown,
)
from tests.tvmquant.random_graphs import Finding, RandomGraph, in_child, shortest

OPSETS = range(13, 22)
LENGTHS = range(1, 9)
EVALUATED = 3
# Integers that must be those of float64, and of ONNX Runtime, which computes in float32.
LEAST_EQUAL, LEAST_PEER = 0.999, 0.97
# of 16 bits, whose weights of interpolation are not exact
LEAST_RESIZED = 0.98
# of a step: multipliers move what they give by less, and so do sums in float64
NEAR_A_TIE = 1e-5
# Relative, of sums and quotients in float32, as those of inputs.
FLOAT32 = 2.0**-22
# what has no integer form
FLOATS = frozenset({"softmax", "mean", "sum", "divide", "where", "matmul"})
# nor of 16 bits
WIDE_FLOATS = frozenset(
    {"sigmoid", "tanh", "leakyrelu", "prelu", "multiply", "avg_pool2d", "elu", "maximum", "minimum"}
)


class QuantizedGraph:
    """A random graph, and a random way in which it was quantized.

    Parameters
    ----------
    seed : int
    length : int
        Operators.
    """

    def __init__(self, seed: int, length: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = RandomGraph(seed, length, opset=int(self.rng.choice(OPSETS)))
        self.operator = bool(self.rng.random() < 0.3)
        wide = not self.operator and self.rng.random() < 0.2
        activations = ("QInt16", "QUInt16") if wide else ("QInt8", "QUInt8")
        weights = ["QInt8", "QUInt8"] if self.operator else ["QInt8", "QInt8", "QUInt8", "QInt4"]
        self.activation = str(self.rng.choice(activations))
        self.weight = str(self.rng.choice(weights))
        if self.activation == "QInt8" and self.weight == "QUInt8":
            self.weight = "QInt8"  # ONNX Runtime does not combine them
        self.per_channel = bool(self.rng.random() < 0.5)
        names = [node.name for node in self.graph.nodes]
        share = self.rng.choice([0.0, 0.0, 0.3])
        self.excluded = [name for name in names if self.rng.random() < share]
        # else those that ONNX Runtime quantizes by itself
        self.every = not self.operator and bool(self.rng.random() < 0.5)
        flags = (
            "ForceQuantizeNoInputCheck", "ActivationSymmetric", "WeightSymmetric",
            "DedicatedQDQPair", "QDQKeepRemovableActivations", "AddQDQPairToWeight",
        )  # fmt: skip
        self.flags = {flag: bool(self.rng.random() < 0.4) for flag in flags}

    def __str__(self) -> str:
        """Describe the graph and how it was quantized."""
        ways = ["QOperator" if self.operator else "QDQ", self.activation, self.weight]
        ways += ["per channel"] * self.per_channel + ["every operator"] * self.every
        ways += [flag for flag, on in self.flags.items() if on]
        ways += [f"without {', '.join(self.excluded)}"] * bool(self.excluded)
        operators = ", ".join(node.op_type for node in self.graph.nodes)
        return f"opset {self.graph.opset}, {operators}\n    {', '.join(ways)}"

    def model(self) -> onnx.ModelProto:
        """Return what ONNX Runtime quantizes it to.

        Raises
        ------
        Exception
            Where ONNX Runtime does not succeed.
        """
        from onnxruntime.quantization import (
            CalibrationDataReader,
            QuantFormat,
            QuantType,
            quantize_static,
        )

        batches = iter([{"x": self.graph.data()}])

        class Reader(CalibrationDataReader):
            def get_next(self) -> Any:
                return next(batches, None)

        kinds = sorted({node.op_type for node in self.graph.nodes} - {"Cast"})
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "float.onnx"), Path(folder, "quantized.onnx")
            onnx.save(self.graph.model, source)
            logging.disable(logging.WARNING)
            try:
                quantize_static(
                    source, target, Reader(),
                    quant_format=QuantFormat.QOperator if self.operator else QuantFormat.QDQ,
                    activation_type=QuantType[self.activation], weight_type=QuantType[self.weight],
                    per_channel=self.per_channel, nodes_to_exclude=self.excluded,
                    op_types_to_quantize=kinds if self.every else None, extra_options=self.flags,
                )  # fmt: skip
            finally:
                logging.disable(logging.NOTSET)
            return onnx.load(target)


def examine(graph: QuantizedGraph, *, built: bool) -> Finding:
    """Quantize a graph with ONNX Runtime, import that, and compare; with `built`, compile it too.

    Besides those of `random_graphs`, findings are ``none``, of what ONNX Runtime does not quantize
    or run; ``WHOLE``, ``LAYER``, of integers that are not those of the file; ``PEER``, of those
    that are not ONNX Runtime's; ``FLOAT``, of operators in float that the file has in integers.
    """
    from tvmquant.errors import TVMQuantError

    try:
        model = graph.model()
        tensors = quantized_tensors(model)
        images = graph.graph.data()[:EVALUATED]
        shown = dict(zip(*_run_onnxruntime(with_shown(model, tensors), {"x": images}), strict=True))
    except Exception as error:
        return Finding("none", f"{type(error).__name__}: {str(error)[:200]}")
    try:
        wide = "16" in graph.activation
        return _examine(
            model, tensors, {"x": images}, shown, graph.graph.data(), wide=wide, built=built
        )
    except TVMQuantError as error:
        return Finding("refused", f"{type(error).__name__}: {error}")
    except Exception as error:
        trace = traceback.format_exc()[-900:]
        return Finding("CRASH", f"{type(error).__name__}: {str(error)[:300]}\n{trace}")


def _examine(
    model: onnx.ModelProto,
    tensors: list[QuantizedTensor],
    feeds: Mapping[str, np.ndarray],
    shown: Mapping[str, np.ndarray],
    data: np.ndarray,
    *,
    wide: bool,
    built: bool,
) -> Finding:
    import tvmquant
    from tvmquant.passes.verify_integer_only import float_audit

    if not tensors:
        return Finding("none", "nothing is quantized")
    cut = layer_by_layer(model, tensors, {**feeds, **shown})
    inputs = [value.name for value in cut.graph.input]
    fed = {**feeds, **{given(tensor): shown[tensor.shown] for tensor in tensors}}
    resized = wide and any(node.op_type == "Resize" for node in model.graph.node)
    least = LEAST_RESIZED if resized else LEAST_EQUAL
    found = _compare_layers(cut, tensors, [fed[name] for name in inputs], least)
    if found.wrong:
        return found
    graph = tvmquant.load_onnx(model)
    quantized = tvmquant.quantize(graph)
    single, several = _owned(model)
    known = FLOATS | WIDE_FLOATS if wide else FLOATS
    floats = [op for op in float_audit(quantized.module) if op.op not in known]
    if unexpected := [str(op) for op in floats if op.node in single]:
        return Finding("FLOAT", "; ".join(unexpected))
    simulated = tvmquant.simulate(quantized, feeds["x"])
    if not float_audit(quantized.module) and not _is_twin(graph, None, feeds["x"], simulated):
        return Finding("TWIN")
    if graph.inputs[0][1][0] is None:
        calibration = tvmquant.calibrate(graph, data)
        calibrated = tvmquant.quantize(graph, calibration)
        other = tvmquant.simulate(calibrated, feeds["x"])
        if not float_audit(calibrated.module) and not _is_twin(
            graph, calibration, feeds["x"], other
        ):
            return Finding("TWIN", "calibrated")
    if built:
        return _library(quantized, feeds["x"], simulated)
    if kept := [str(op) for op in floats if op.node in several]:
        return Finding("floats", "; ".join(kept))
    return Finding("ok")


def _owned(model: onnx.ModelProto) -> tuple[set[str], set[str]]:
    """Return nodes that stand between quantizers alone, and those that do so with others."""
    floats = {tensor.name for tensor in model.graph.initializer if tensor.data_type == 1}
    layers = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    unscaled = {
        node.name
        for node in model.graph.node
        if node.op_type in layers and floats.intersection(node.input[:2])
    }
    # of several steps, each of which would round
    steps = {node.name for node in model.graph.node if node.op_type.startswith("Reduce")}
    owned = integer_operators(model) - unscaled - steps
    writers = {name: node for node in model.graph.node for name in node.output}
    joined = {
        name
        for node in model.graph.node
        for value in node.input
        if node.name in owned and value in writers and writers[value].name in owned
        for name in (node.name, writers[value].name)
    }
    integers = {
        node.name for node in model.graph.node if node.op_type.startswith(("QLinear", "QGemm"))
    }
    return (owned - joined) | integers, joined - integers


def _compare_layers(
    cut: onnx.ModelProto,
    tensors: list[QuantizedTensor],
    values: list[np.ndarray],
    least_equal: float,
) -> Finding:
    """Compare what each layer makes of the same integers with float64, and with ONNX Runtime."""
    import torch

    import tvmquant
    from tvmquant.twin import Twin

    graph = tvmquant.load_onnx(_with_float_inputs(cut))
    unrounded: dict[str, np.ndarray] = {}
    twin = Twin(graph.module, observe=lambda edge, x: unrounded.update({edge: x.numpy()}))
    with torch.inference_mode():
        exact = twin.double()(*(torch.from_numpy(v).double() for v in values))
    exact = [v.numpy() for v in (exact if isinstance(exact, tuple) else (exact,))]
    edges = _edges_of_outputs(graph)
    simulated = tvmquant.simulate(tvmquant.quantize(tvmquant.load_onnx(cut)), *values)
    inputs = [value.name for value in cut.graph.input]
    names, peer = _run_onnxruntime(cut, dict(zip(inputs, values, strict=True)))
    for tensor in tensors:
        index = names.index(result(tensor))
        found, before = simulated[index], unrounded[edges[index]]
        if exact[index].shape != found.shape:
            return Finding("LAYER", f"{tensor.node}: shape {found.shape}, not {exact[index].shape}")
        steps = before / tensor.step.astype(np.float64).reshape(
            [-1 if i == tensor.axis and tensor.step.size > 1 else 1 for i in range(before.ndim)]
        )
        near = np.maximum(NEAR_A_TIE, np.abs(steps) * FLOAT32)
        sure = np.abs(np.abs(steps - np.floor(steps)) - 0.5) > near
        for kind, other, least in (("LAYER", exact, least_equal), ("PEER", peer, LEAST_PEER)):
            off = np.abs(tensor.steps(found.astype(np.float64) - other[index]))
            count, most = int(np.count_nonzero(off * sure)), int(off.max(initial=0))
            if most > 1 or count > (1 - least) * off.size + (kind == "PEER"):
                text = f"{count} of {off.size} integers differ, by up to {most}"
                return Finding(kind, f"{tensor.node}: {text}")
    return Finding("ok")


def _with_float_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model that reads numbers of its first input that are floats already.

    A cast to float32 in it would take those of float64 down.
    """
    copy = type(model)()
    copy.CopyFrom(model)
    copy.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for node in copy.graph.node:
        if node.op_type == "Cast":
            node.op_type = "Identity"
            del node.attribute[:]
    return copy


def _edges_of_outputs(graph: Any) -> list[str]:
    """Return the id of the fake_quant that gives each output; else nothing."""
    from tvm import relax

    from tvmquant.ir import quantized_ops as qop
    from tvmquant.ir.rewriter import bindings_of

    made = dict(bindings_of(graph.main))
    body = graph.main.body.body
    found = []
    for var in body.fields if isinstance(body, relax.Tuple) else [body]:
        value = var
        while isinstance(value, relax.Var):
            value = made.get(value)
        is_rounded = qop.is_call(value, qop.FAKE_QUANT)
        found.append(str(qop.attributes(value)["id"]) if is_rounded else "")
    return found


def _is_twin(graph: Any, calibration: Any, x: np.ndarray, simulated: Any) -> bool:
    """Whether the exact twin computes the same numbers."""
    import torch

    from tvmquant.quantization import apply_calibration
    from tvmquant.twin import Twin

    annotated = apply_calibration(graph, calibration)
    with torch.inference_mode():
        twin = Twin(annotated.module, mode="exact")(torch.from_numpy(x))
    twin = twin if isinstance(twin, tuple) else (twin,)
    return all(np.array_equal(a, b.numpy()) for a, b in zip(simulated, twin, strict=True))


def _library(quantized: Any, x: np.ndarray, simulated: Any) -> Finding:
    """Compile a graph and compare with what the simulator gives."""
    import tvmquant
    from tvmquant.passes.verify_integer_only import float_audit

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "library")
        tvmquant.build(quantized, target="haswell", out=out, threads=1, batch=len(x))
        computed = tvmquant.load(out, threads=1)(x)
    computed = computed if isinstance(computed, tuple) else (computed,)
    exact = not float_audit(quantized.module)
    for index, (a, b) in enumerate(zip(simulated, computed, strict=True)):
        near = 0.0 if exact else 1e-4 * float(np.abs(a).max(initial=0))
        if a.shape != b.shape or not np.abs(a - b).max(initial=0) <= near:
            return Finding("LIBRARY", f"output {index}")
    return Finding("ok")


def _run_onnxruntime(
    model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]
) -> tuple[list[str], list[np.ndarray]]:
    """Return the names and the values of the outputs, computed as the file is written."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [value.name for value in session.get_outputs()], session.run(None, dict(feeds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--built", type=float, default=0.05, help="share that is compiled")
    parser.add_argument("--out", type=Path, help="folder for those that are wrong")
    options = parser.parse_args()
    import onnxruntime.quantization  # noqa: F401
    import torch

    # once, before processes are forked
    import tvmquant.deploy.build
    import tvmquant.frontend
    import tvmquant.quantization
    import tvmquant.simulator
    import tvmquant.twin  # noqa: F401

    torch.set_num_threads(1)
    tally: Counter[str] = Counter()
    for seed in range(options.seed, options.seed + options.count):
        rng = np.random.default_rng(seed)
        length, built = int(rng.choice(LENGTHS)), bool(rng.random() < options.built)

        def find(seed: int, length: int, built: bool = built) -> Finding:
            return in_child(lambda: examine(QuantizedGraph(seed, length), built=built))

        found = find(seed, length)
        tally[found.kind] += 1
        if found.kind in ("refused", "none", "floats"):
            print(f"seed {seed} length {length}: {found.kind}: {found.text[:300]}", flush=True)
        if not found.wrong:
            continue
        length = shortest(seed, length, found.kind, find)
        found = find(seed, length)
        graph = QuantizedGraph(seed, length)
        print(f"seed {seed} length {length}: {found.kind}: {found.text}\n    {graph}", flush=True)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            stem = options.out / f"{found.kind.lower()}-{seed}-{length}"
            onnx.save(graph.model(), f"{stem}.onnx")
            np.save(f"{stem}.npy", graph.graph.data())
    print(dict(tally))


if __name__ == "__main__":
    main()
