"""Random ONNX graphs of supported operators, and what must hold of each of them.

``python -m tests.tvmquant.random_graphs --count 1000`` examines many, each in a process of its own,
prints those that are wrong, shortened as far as they stay wrong, and keeps them with ``--out``.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import multiprocessing
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CALIBRATED, EVALUATED = 24, 4
OPSETS = range(9, 22)
LENGTHS = range(2, 13)
# ONNX Runtime without optimizations and torch differ in the order of sums
PARITY = 2e-4
# the exponential of a large negative number is this, or 0, or in between
NOTHING = 1e-20
LEAST_SQNR = 20.0
# below which ratio to its largest value an output does not vary
CONSTANT = 1e-3
# so few numbers beyond a tenth of the largest carry an output that chance decides on its SQNR
FEW = 30
# a network that answers so differently to an input in 8 bits loses what it would have to keep
AMPLIFIED_SQNR = 26.0
# nor may it be worse than ONNX Runtime's INT8 by more
PEER_MARGIN = 1.0
LIMIT_SECONDS = 120


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A value of a graph: its name, and the shape of an item."""

    name: str
    shape: tuple[int, ...]


class RandomGraph:
    """Operators drawn one after another: a shorter graph of a seed begins as a longer one does.

    Parameters
    ----------
    seed : int
    length : int
        Operators.
    opset : int, optional
        Drawn by default.
    """

    def __init__(self, seed: int, length: int, opset: int | None = None) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        drawn = int(self.rng.choice(OPSETS))
        self.opset = drawn if opset is None else opset
        self.scale = 10.0 ** self.rng.uniform(-3, 3)
        self.offset = float(self.rng.choice([0.0, 0.0, 1.0, -2.0]))
        if self.chance(0.15):
            shape: tuple[int, ...] = (self.between(2, 40),)
        else:
            shape = (self.between(1, 12), self.between(3, 14), self.between(3, 14))
        self.input = Tensor("x", shape)
        self.tensors = [self.input]
        self.read: set[str] = set()
        self.pixels = self.chance(0.1)
        if self.pixels:
            self.scale, self.offset = 100.0, 0.0
            self.tensors = []
            self.emit("Cast", ["x"], shape, to=TensorProto.FLOAT)
        for _ in range(length):
            self._step()
        self.model = self._finish()

    def data(self) -> np.ndarray:
        """Return inputs to calibrate with; the first of them are evaluated.

        So few do not tell how far others go: that is no question of the operators.
        """
        rng = np.random.default_rng(self.opset)
        if self.pixels:
            return rng.integers(0, 256, (CALIBRATED, *self.input.shape)).astype(np.uint8)
        items = rng.standard_normal((CALIBRATED, *self.input.shape))
        return ((items + self.offset) * self.scale).astype(np.float32)

    def choices(self, imported: Any) -> dict[str, Any]:
        """Return bit choices of 1 to 8 bits for the layers of every second graph; else none."""
        from tvmquant.bit_choice import BitChoice
        from tvmquant.layers import quantizable_layers

        if self.chance(0.5):
            return {}
        found, read = {}, {}
        for layer in quantizable_layers(imported):
            a_bits = 8 if layer.given else read.setdefault(layer.group, self.between(1, 8))
            w_bits = self.between(1, 8)
            groups = "g32" if layer.groupable and 2 <= w_bits <= 4 and self.chance(0.5) else ""
            found[layer.id] = BitChoice.parse(f"w{w_bits}a{a_bits}{groups}")
        fixed = {layer.group for layer in quantizable_layers(imported) if layer.given}
        return {
            layer.id: found[layer.id]
            for layer in quantizable_layers(imported)
            if layer.given or layer.group not in fixed
        }

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def between(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def choose(self, options: Any) -> Any:
        return options[self.between(0, len(options) - 1)]

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def normal(self, *shape: int, scale: float = 1.0) -> str:
        return self.constant((scale * self.rng.standard_normal(shape)).astype(np.float32))

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def emit(
        self, kind: str, inputs: list[str], *shapes: tuple[int, ...], **attributes: Any
    ) -> None:
        first = len(self.tensors)
        outputs = [Tensor(f"t{first + i}", shape) for i, shape in enumerate(shapes)]
        attributes = {k: v for k, v in attributes.items() if v is not None}
        names = [tensor.name for tensor in outputs]
        self.nodes.append(
            helper.make_node(kind, inputs, names, f"{kind}_{len(self.nodes)}", **attributes)
        )
        self.read |= set(inputs)
        self.tensors += outputs

    def _step(self) -> None:
        # mostly the newest tensor goes on
        x = self.tensors[-1] if self.chance(0.75) else self.choose(self.tensors)
        kinds = SPATIAL if len(x.shape) == 3 else FLAT
        names, weights = zip(*kinds.items(), strict=True)
        drawn = self.rng.choice(len(names), p=np.array(weights) / sum(weights))
        getattr(self, f"_{names[drawn]}")(x)

    # operators of windows

    def _window(
        self, x: Tensor, largest: int = 5
    ) -> tuple[list[int], list[int], list[int], list[int]]:
        kernel = [self.between(1, min(largest, extent)) for extent in x.shape[1:]]
        strides = [self.choose([1, 1, 2]) for _ in kernel]
        dilations = [
            self.choose([1, 1, 1, 2]) if extent >= 2 * k else 1
            for k, extent in zip(kernel, x.shape[1:], strict=True)
        ]
        reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        pads = [self.between(0, r // 2) for r in reach * 2]
        return kernel, strides, dilations, pads

    def _convolve(self, x: Tensor, outputs: int, groups: int) -> None:
        kernel, strides, dilations, pads = self._window(x)
        fan = x.shape[0] // groups * math.prod(kernel)
        inputs = [x.name, self.normal(outputs, x.shape[0] // groups, *kernel, scale=fan**-0.5)]
        if self.chance(0.7):
            inputs.append(self.normal(outputs, scale=0.3 * self.scale))
        extents = [
            (e + pads[i] + pads[2 + i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1
            for i, e in enumerate(x.shape[1:])
        ]
        self.emit(
            "Conv", inputs, (outputs, *extents), kernel_shape=kernel, strides=strides, pads=pads,
            dilations=dilations, group=groups,
        )  # fmt: skip

    def _conv(self, x: Tensor) -> None:
        groups = self.choose([g for g in (1, 1, 1, 2, 3) if x.shape[0] % g == 0])
        self._convolve(x, groups * self.between(1, 16), groups)

    def _depthwise(self, x: Tensor) -> None:
        self._convolve(x, x.shape[0] * self.choose([1, 1, 2]), x.shape[0])

    def _transposed(self, x: Tensor) -> None:
        kernel = [self.between(1, 4) for _ in range(2)]
        strides = [self.between(1, 2) for _ in range(2)]
        pads = [self.between(0, (k - 1) // 2) for k in kernel * 2]
        extents = [
            (e - 1) * strides[i] + kernel[i] - pads[i] - pads[2 + i]
            for i, e in enumerate(x.shape[1:])
        ]
        if min(extents) < 1 or max(extents) > 30:
            return self._conv(x)
        outputs = self.between(1, 8)
        scale = (x.shape[0] * math.prod(kernel) / math.prod(strides)) ** -0.5
        inputs = [x.name, self.normal(x.shape[0], outputs, *kernel, scale=scale)]
        if self.chance(0.7):
            inputs.append(self.normal(outputs, scale=0.3 * self.scale))
        self.emit(
            "ConvTranspose", inputs, (outputs, *extents), kernel_shape=kernel, strides=strides,
            pads=pads,
        )  # fmt: skip
        return None

    def _pool(self, x: Tensor) -> None:
        kind = self.choose(["MaxPool", "AveragePool"])
        kernel = [self.between(1, min(3, extent)) for extent in x.shape[1:]]
        strides = [self.choose([1, 2]) for _ in kernel]
        pads = [self.between(0, k // 2) for k in kernel * 2]
        extents = [
            (e + pads[i] + pads[2 + i] - kernel[i]) // strides[i] + 1
            for i, e in enumerate(x.shape[1:])
        ]
        include = self.between(0, 1) if kind == "AveragePool" else None
        self.emit(
            kind, [x.name], (x.shape[0], *extents), kernel_shape=kernel, strides=strides, pads=pads,
            count_include_pad=include,
        )  # fmt: skip

    def _global_pool(self, x: Tensor) -> None:
        kind = self.choose(["GlobalAveragePool", "GlobalAveragePool", "GlobalMaxPool"])
        self.emit(kind, [x.name], (x.shape[0], 1, 1))

    # of elements

    def _normalize(self, x: Tensor) -> None:
        channels = x.shape[0]
        vectors = [
            self.constant(self.rng.uniform(0.5, 1.5, channels).astype(np.float32)),
            self.normal(channels, scale=0.3),
            self.normal(channels, scale=0.3 * self.scale),
            self.constant((self.scale**2 * self.rng.uniform(0.5, 1.5, channels)).astype("float32")),
        ]
        self.emit("BatchNormalization", [x.name, *vectors], x.shape)

    def _activate(self, x: Tensor) -> None:
        kind = self.choose(
            ["Relu", "Relu", "Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "HardSigmoid",
             "Elu", "HardSwish"]
        )  # fmt: skip
        if kind == "Clip":
            low, high = 0.0, 6.0 * (1.0 if self.chance(0.5) else self.scale)
            if self.opset < 11:
                return self.emit("Clip", [x.name], x.shape, min=low, max=high)
            bounds = [self.constant(np.float32(v)) for v in (low, high)]
            return self.emit("Clip", [x.name, *bounds], x.shape)
        if kind == "HardSwish" and self.opset < 14:
            kind = "Relu"
        if kind == "PRelu":
            slopes = self.rng.uniform(0.05, 0.5, (x.shape[0], *[1] * (len(x.shape) - 1)))
            return self.emit("PRelu", [x.name, self.constant(slopes.astype(np.float32))], x.shape)
        return self.emit(kind, [x.name], x.shape)

    def _combine(self, x: Tensor) -> None:
        kind = self.choose(["Add", "Add", "Add", "Mul", "Sub"])
        others = [t for t in self.tensors if t.shape == x.shape and t is not x]
        spread = (x.shape[0], 1, 1)
        broadcast = [t for t in self.tensors if len(x.shape) == 3 and t.shape == spread != x.shape]
        if broadcast and self.chance(0.4):
            other = self.choose(broadcast).name
        elif others and self.chance(0.8):
            other = self.choose(others).name
        else:
            shape = self.choose([(), (x.shape[0], *[1] * (len(x.shape) - 1))])
            other = self.normal(*shape, scale=1.0 if kind == "Mul" else self.scale)
        inputs = [x.name, other] if self.chance(0.7) else [other, x.name]
        self.emit(kind, inputs, x.shape)

    def _compare(self, x: Tensor) -> None:
        kind = self.choose(["Max", "Min"])
        others = [t for t in self.tensors if t.shape == x.shape and t is not x]
        if others and self.chance(0.8):
            other = self.choose(others).name
        else:
            other = self.normal(scale=self.scale)
        self.emit(kind, [x.name, other], x.shape)

    def _select(self, x: Tensor) -> None:
        """Take numbers of one tensor where a mask says so, else of another or a constant."""
        shape = self.choose([x.shape, x.shape[-1:], (x.shape[0], *[1] * (len(x.shape) - 1))])
        mask = self.constant(self.rng.random(shape) < 0.6)
        others = [t for t in self.tensors if t.shape == x.shape and t is not x]
        if others and self.chance(0.5):
            other = self.choose(others).name
        else:
            other = self.constant(np.float32(self.choose([0.0, self.scale])))
        inputs = [x.name, other] if self.chance(0.7) else [other, x.name]
        self.emit("Where", [mask, *inputs], x.shape)

    def _decomposed(self, x: Tensor) -> None:
        """Write a GELU or a hard-swish as what exporters of old opsets make of it."""

        def number(value: float) -> str:
            return self.constant(np.float32(value))

        def then(kind: str, *inputs: str, **attributes: Any) -> str:
            self.emit(kind, list(inputs), x.shape, **attributes)
            return self.tensors[-1].name

        if self.chance(0.5):
            part = then("Erf", then("Div", x.name, number(2**0.5)))
            part = then("Mul", x.name, then("Add", part, number(1.0)))
            return self.emit("Mul", [part, number(0.5)], x.shape)
        shifted = then("Add", x.name, number(3.0))
        if self.opset < 11:
            part = then("Clip", shifted, min=0.0, max=6.0)
        else:
            part = then("Clip", shifted, number(0.0), number(6.0))
        return self.emit("Div", [then("Mul", x.name, part), number(6.0)], x.shape)

    def _softmax(self, x: Tensor) -> None:
        self.emit("Softmax", [x.name], x.shape, axis=1)

    # that move

    def _concat(self, x: Tensor) -> None:
        others = [
            t for t in self.tensors if t.shape[1:] == x.shape[1:] and len(t.shape) == len(x.shape)
        ]
        parts = [x, *(self.choose(others) for _ in range(self.between(1, 2)))]
        channels = sum(part.shape[0] for part in parts)
        if channels > 64:
            return self._activate(x)
        names = [part.name for part in parts]
        return self.emit("Concat", names, (channels, *x.shape[1:]), axis=1)

    def _split(self, x: Tensor) -> None:
        if x.shape[0] < 2:
            return self._activate(x)
        first = self.between(1, x.shape[0] - 1)
        sizes = (first, x.shape[0] - first)
        shapes = [(size, *x.shape[1:]) for size in sizes]
        if self.opset < 13:
            return self.emit("Split", [x.name], *shapes, axis=1, split=sizes)
        return self.emit("Split", [x.name, self.integers(*sizes)], *shapes, axis=1)

    def _slice(self, x: Tensor) -> None:
        axis = self.between(0, len(x.shape) - 1)
        extent = x.shape[axis]
        begin = self.between(0, extent - 1)
        end = self.between(begin + 1, extent)
        step = 1 if self.opset < 10 else self.choose([1, 1, 2])
        shape = list(x.shape)
        shape[axis] = -(-(end - begin) // step)
        if self.opset < 10:
            return self.emit(
                "Slice", [x.name], tuple(shape), axes=[axis + 1], starts=[begin], ends=[end]
            )
        inputs = [self.integers(v) for v in (begin, end, axis + 1, step)]
        return self.emit("Slice", [x.name, *inputs], tuple(shape))

    def _pad(self, x: Tensor) -> None:
        pads = [self.between(0, 2) for _ in range(4)]
        value = self.choose([0.0, 0.0, self.scale, -self.scale])
        shape = (x.shape[0], x.shape[1] + pads[0] + pads[2], x.shape[2] + pads[1] + pads[3])
        whole = [0, 0, *pads[:2], 0, 0, *pads[2:]]
        if self.opset < 11:
            return self.emit("Pad", [x.name], shape, pads=whole, value=value)
        return self.emit(
            "Pad", [x.name, self.integers(*whole), self.constant(np.float32(value))], shape
        )

    def _transpose(self, x: Tensor) -> None:
        order = [int(v) for v in self.rng.permutation(len(x.shape))]
        shape = tuple(x.shape[axis] for axis in order)
        self.emit("Transpose", [x.name], shape, perm=[0, *(axis + 1 for axis in order)])

    def _flatten(self, x: Tensor) -> None:
        size = math.prod(x.shape)
        if self.chance(0.5):
            return self.emit("Flatten", [x.name], (size,), axis=1)
        return self.emit("Reshape", [x.name, self.integers(0, -1)], (size,))

    def _fold(self, x: Tensor) -> None:
        """Reshape a vector into an image."""
        size = x.shape[0]
        height = self.choose([v for v in range(1, min(8, size) + 1) if size % v == 0])
        width = self.choose([v for v in range(1, size // height + 1) if size // height % v == 0])
        shape = (size // height // width, height, width)
        self.emit("Reshape", [x.name, self.integers(-1, *shape)], shape)

    def _resize(self, x: Tensor) -> None:
        factors = [self.choose([1, 2, 2, 3]) for _ in range(2)]
        shape = (x.shape[0], x.shape[1] * factors[0], x.shape[2] * factors[1])
        if max(shape[1:]) > 30:
            return self._pool(x)
        mode = self.choose(["nearest", "linear"])
        scales = self.constant(np.array([1, 1, *factors], np.float32))
        if self.opset < 10:
            return self.emit("Upsample", [x.name, scales], shape, mode=mode)
        if self.opset < 11:
            return self.emit("Resize", [x.name, scales], shape, mode=mode)
        empty = self.constant(np.zeros(0, np.float32))
        where = self.choose(["half_pixel", "asymmetric", "align_corners"])
        rounding = "floor" if mode == "nearest" else None
        if mode == "nearest":
            where = "asymmetric"
        return self.emit(
            "Resize", [x.name, empty, scales], shape, mode=mode, nearest_mode=rounding,
            coordinate_transformation_mode=where,
        )  # fmt: skip

    def _reduce(self, x: Tensor) -> None:
        kind = self.choose(["ReduceMean", "ReduceMean", "ReduceSum", "ReduceMax"])
        rank = len(x.shape)
        axes = self.choose([[2, 3], [1]]) if rank == 3 and self.chance(0.5) else []
        axes = axes or [i for i in range(1, rank + 1) if self.chance(0.4)] or [rank]
        shape = tuple(1 if axis + 1 in axes else e for axis, e in enumerate(x.shape))
        if self.opset < (13 if kind == "ReduceSum" else 18):
            return self.emit(kind, [x.name], shape, axes=axes, keepdims=1)
        return self.emit(kind, [x.name, self.integers(*axes)], shape, keepdims=1)

    # dense

    def _dense(self, x: Tensor) -> None:
        outputs = self.between(1, 24)
        scale = x.shape[0] ** -0.5
        if self.chance(0.5):
            weight = self.normal(x.shape[0], outputs, scale=scale)
            return self.emit("MatMul", [x.name, weight], (outputs,))
        transposed = self.between(0, 1)
        shape = (outputs, x.shape[0]) if transposed else (x.shape[0], outputs)
        inputs = [x.name, self.normal(*shape, scale=scale)]
        inputs.append(self.normal(outputs, scale=0.3 * self.scale))
        return self.emit("Gemm", inputs, (outputs,), transB=transposed)

    def _multiply(self, x: Tensor) -> None:
        """Multiply the matrices of a tensor by a constant, on its left or right."""
        channels, height, width = x.shape
        size = self.between(1, 12)
        batches = self.choose([(), (1,), (channels,), (1, channels)])
        if self.chance(0.5):
            matrix = self.normal(*batches, size, height, scale=height**-0.5)
            return self.emit("MatMul", [matrix, x.name], (channels, size, width))
        matrix = self.normal(*batches, width, size, scale=width**-0.5)
        return self.emit("MatMul", [x.name, matrix], (channels, height, size))

    def _finish(self) -> onnx.ModelProto:
        """Make what nothing reads an output, and now and then what something reads too."""
        made = self.tensors[1:]
        outputs = [t for t in made if t.name not in self.read]
        inner = [t for t in made if t.name in self.read]
        if inner and self.chance(0.3):
            outputs.append(self.choose(inner))
        values = [
            helper.make_tensor_value_info(t.name, TensorProto.FLOAT, ["N", *t.shape])
            for t in outputs
        ]
        kind = TensorProto.UINT8 if self.pixels else TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info(self.input.name, kind, ["N", *self.input.shape])],
            values,
            self.constants,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


# how often each is drawn
SPATIAL = {
    "conv": 6, "depthwise": 2, "transposed": 1.5, "pool": 2, "global_pool": 0.5, "normalize": 1.5,
    "activate": 4, "combine": 3, "softmax": 0.3, "concat": 2, "split": 1, "slice": 1, "pad": 1,
    "transpose": 0.5, "flatten": 0.7, "resize": 1, "reduce": 1, "compare": 0.7, "select": 0.4,
    "decomposed": 0.5, "multiply": 0.5,
}  # fmt: skip
FLAT = {
    "dense": 5, "activate": 3, "combine": 2, "softmax": 0.5, "concat": 1, "split": 1, "slice": 1,
    "fold": 1, "reduce": 0.3, "compare": 0.7, "select": 0.3, "decomposed": 0.5,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found of a graph.

    Attributes
    ----------
    kind : str
        ``ok``; ``refused``, by an error of ours; ``CRASH``, a foreign exception; ``PARITY``, the
        float graph computes something else; ``LIBRARY``, the library does; ``TWIN``, the
        exact twin does; ``LOW``, of which nothing explains the low SQNR.
    text : str
    """

    kind: str
    text: str = ""

    @property
    def wrong(self) -> bool:
        return self.kind.isupper()


def examine(graph: RandomGraph, *, built: bool) -> Finding:
    """Import, quantize and simulate a graph; with `built`, compile it too."""
    from tvmquant.errors import TVMQuantError

    try:
        return _examine(graph, built)
    except TVMQuantError as error:
        return Finding("refused", f"{type(error).__name__}: {error}")
    except Exception as error:
        trace = traceback.format_exc()[-600:]
        return Finding("CRASH", f"{type(error).__name__}: {str(error)[:300]}\n{trace}")


def _examine(graph: RandomGraph, built: bool) -> Finding:
    import torch

    import tvmquant
    from tvmquant.passes.verify_integer_only import float_audit
    from tvmquant.quantization import apply_calibration
    from tvmquant.twin import Twin

    data = graph.data()
    images = data[:EVALUATED]
    reference = run_onnxruntime(graph.model, images)
    imported = tvmquant.load_onnx(graph.model)
    fixed = imported.inputs[0][1][0]
    if fixed is not None:
        return Finding("refused", f"the batch is fixed to {fixed}")
    with torch.inference_mode():
        found = Twin(imported.module)(torch.from_numpy(images))
    found = found if isinstance(found, tuple) else (found,)
    for index, (a, b) in enumerate(zip(reference, found, strict=True)):
        largest = max(float(np.abs(a).max(initial=0)), NOTHING)
        if a.shape != tuple(b.shape):
            return Finding("PARITY", f"output {index}: shape {tuple(b.shape)}, not {a.shape}")
        difference = np.abs(a - b.numpy()).max(initial=0)
        if not (difference < PARITY * largest or difference < _rounding_of_sums(graph, images)):
            return Finding("PARITY", f"output {index}")
    calibration = tvmquant.calibrate(imported, data)
    quantized = tvmquant.quantize(imported, calibration)
    simulated = tvmquant.simulate(quantized, images)
    compiled, expected, choices = quantized, simulated, graph.choices(imported) if built else {}
    if choices:
        compiled = tvmquant.quantize(imported, calibration, choices=choices)
        expected = tvmquant.simulate(compiled, images)
    if not float_audit(compiled.module):
        annotated = apply_calibration(imported, calibration, choices=choices)
        twin = Twin(annotated.module, mode="exact")(torch.from_numpy(images))
        for index, (a, b) in enumerate(
            zip(expected, twin if isinstance(twin, tuple) else (twin,), strict=True)
        ):
            if not np.array_equal(a, b.numpy()):
                return Finding("TWIN", f"output {index}")
    if built:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "library")
            tvmquant.build(compiled, target="haswell", out=out, threads=1, batch=EVALUATED)
            computed = tvmquant.load(out, threads=1)(images)
        computed = computed if isinstance(computed, tuple) else (computed,)
        exact = not float_audit(compiled.module)
        for index, (a, b) in enumerate(zip(expected, computed, strict=True)):
            near = 0.0 if exact else 1e-4 * float(np.abs(a).max(initial=0))
            if a.shape != b.shape or not np.abs(a - b).max(initial=0) <= near:
                return Finding("LIBRARY", f"output {index}")
    if min(map(sqnr_db, reference, simulated)) >= LEAST_SQNR:
        return Finding("ok")
    # a few numbers may be poor by chance
    reference, simulated = run_onnxruntime(graph.model, data), tvmquant.simulate(quantized, data)
    for index, (a, b) in enumerate(zip(reference, simulated, strict=True)):
        ratio = sqnr_db(a, b)
        if ratio < LEAST_SQNR and not _reason(graph, index, a, ratio):
            return Finding("LOW", f"output {index}: {ratio:.1f} dB")
    return Finding("ok")


def _reason(graph: RandomGraph, index: int, reference: np.ndarray, ratio: float) -> str:
    """Say why no network of 8 bits could keep an output, or nothing."""
    images = graph.data()
    largest = float(np.abs(reference).max(initial=0))
    if not reference.std() > CONSTANT * largest:
        return "it does not vary"
    if np.count_nonzero(np.abs(reference) > 0.1 * largest) < FEW:
        return "it is a few numbers"
    step = np.ptp(images) / np.float32(255)
    for phase in (0.0, 1 / 3, 2 / 3):  # few values may be rounded well by chance
        rounded = ((np.rint(images / step + phase) - phase) * step).astype(images.dtype)
        if sqnr_db(reference, run_onnxruntime(graph.model, rounded)[index]) < AMPLIFIED_SQNR:
            return "it amplifies the rounding of the input"
    theirs = sqnr_db(reference, quantized_by_onnxruntime(graph)[index])
    return f"ONNX Runtime has {theirs:.1f} dB" if ratio > theirs - PEER_MARGIN else ""


def _rounding_of_sums(graph: RandomGraph, images: np.ndarray) -> float:
    """Return what rounding to float32 makes of the largest number that two-term sums read.

    Of x - tanh(x) with a small x nothing else is left. An Elu of ONNX Runtime is such a sum itself:
    exp(x) - 1.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    read = {n for node in model.graph.node if node.op_type in ("Add", "Sub") for n in node.input}
    names = [tensor.name for tensor in graph.tensors if tensor.name in read]
    one = float(any(node.op_type == "Elu" for node in model.graph.node))
    if not names:
        return 0.0
    del model.graph.output[:]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    largest = max(one, *(float(np.abs(a).max(initial=0)) for a in run_onnxruntime(model, images)))
    return 4 * float(np.finfo(np.float32).eps) * largest


def quantized_by_onnxruntime(graph: RandomGraph) -> list[np.ndarray]:
    """Run what ONNX Runtime's static quantization makes of the same data."""
    from benchmarks.peers import OnnxRuntimePeer
    from benchmarks.post_training import quantize_with_onnxruntime

    data = graph.data()
    with tempfile.TemporaryDirectory() as folder:
        source, quantized = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(graph.model, source)
        logging.disable(logging.WARNING)
        try:
            quantize_with_onnxruntime(source, [{"x": data}], quantized)
        finally:
            logging.disable(logging.NOTSET)
        return OnnxRuntimePeer(quantized, threads=1).run_all({"x": data})


def sqnr_db(reference: np.ndarray, found: np.ndarray) -> float:
    """Return the signal-to-quantization-noise ratio."""
    wide = reference.astype(np.float64)
    noise, signal = float(((wide - found) ** 2).sum()), float((wide**2).sum())
    if not math.isfinite(noise):
        return -math.inf
    return math.inf if noise == 0 else 10 * math.log10(max(signal, 1e-300) / noise)


def run_onnxruntime(model: onnx.ModelProto, images: np.ndarray) -> list[np.ndarray]:
    """Run the float model as it is written: fusions change results."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": images})


def shortest(seed: int, length: int, kind: str, find: Callable[[int, int], Finding]) -> int:
    """Return the least length at which the graph of a seed is wrong in the same way."""
    return next((n for n in range(1, length) if find(seed, n).kind == kind), length)


def in_child(find: Callable[[], Finding]) -> Finding:
    """Examine a graph in a forked process, which may crash or not end."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def child() -> None:
        send.send(find())

    process = context.Process(target=child)
    process.start()
    send.close()
    try:
        if not receive.poll(LIMIT_SECONDS):
            return Finding("CRASH", f"it takes more than {LIMIT_SECONDS} s")
        return receive.recv()
    except EOFError:
        return Finding("CRASH", "the process ended")
    finally:
        process.kill()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--built", type=float, default=0.2, help="share that is compiled")
    parser.add_argument("--out", type=Path, help="folder for those that are wrong")
    options = parser.parse_args()
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
            return in_child(lambda: examine(RandomGraph(seed, length), built=built))

        found = find(seed, length)
        tally[found.kind] += 1
        if found.kind == "refused":
            print(f"seed {seed} length {length}: refused: {found.text[:300]}", flush=True)
        if not found.wrong:
            continue
        length = shortest(seed, length, found.kind, find)
        found = find(seed, length)
        graph = RandomGraph(seed, length)
        operators = ", ".join(node.op_type for node in graph.nodes)
        facts = f"opset {graph.opset}, scale {graph.scale:.3g}, {operators}"
        print(f"seed {seed} length {length}: {found.kind}: {found.text}\n    {facts}", flush=True)
        if options.out:
            stem = options.out / f"{found.kind.lower()}-{seed}-{length}"
            options.out.mkdir(parents=True, exist_ok=True)
            onnx.save(graph.model, f"{stem}.onnx")
            np.save(f"{stem}.npy", graph.data())
    print(dict(tally))


if __name__ == "__main__":
    main()
