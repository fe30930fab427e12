"""The quantized activations of an ONNX file, and copies of the file that show or take them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

# where an operator that gives integers has the scale of its result; the zero point comes after it
SCALE_INPUTS = {
    "QuantizeLinear": 1,
    "QLinearConv": 6,
    "QLinearMatMul": 6,
    "QLinearAdd": 6,
    "QLinearMul": 6,
    "QGemm": 7,
    "QLinearConcat": 0,
    **dict.fromkeys(
        (
            "QLinearAveragePool",
            "QLinearGlobalAveragePool",
            "QLinearLeakyRelu",
            "QLinearSigmoid",
            "QLinearSoftmax",
        ),
        3,
    ),
}
QDQ = ("QuantizeLinear", "DequantizeLinear")
_DEFAULT_AXIS = 1


@dataclasses.dataclass(frozen=True)
class QuantizedTensor:
    """Integers that an operator gives, with what they stand for.

    Attributes
    ----------
    name : str
        Of the integers.
    node : str
        That gives them.
    scale, zero_point : str
        Names of the constants; no zero point where empty.
    step : array of float
        The scale, (1,) or (C,).
    axis : int
        Of the channels.
    shown : str
        Name of the dequantized value, in the file or in the copy of `with_shown`.
    """

    name: str
    node: str
    scale: str
    zero_point: str
    step: NDArray[Any]
    axis: int
    shown: str

    def steps(self, difference: NDArray[Any]) -> NDArray[np.int64]:
        """Return by how many integers dequantized values differ."""
        extent = [1] * difference.ndim
        if self.step.size > 1:
            extent[self.axis] = -1
        return np.rint(difference / self.step.astype(np.float64).reshape(extent)).astype(np.int64)


def constants(graph: onnx.GraphProto) -> dict[str, NDArray[Any]]:
    """Return the initializers and what Constant nodes give."""
    from onnx import numpy_helper

    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                found[node.output[0]] = numpy_helper.to_array(attribute.t)
    return found


def _computed(graph: onnx.GraphProto) -> set[str]:
    """Return the names of all values that do not follow from constants alone."""
    names = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if names.intersection(node.input):
            names.update(name for name in node.output if name)
    return names


def quantized_tensors(model: onnx.ModelProto) -> list[QuantizedTensor]:
    """List the activations that a file quantizes with constant scales, in its order."""
    graph = model.graph
    known, computed = constants(graph), _computed(graph)
    dequantized = {
        (node.input[0], node.input[1]): node.output[0]
        for node in reversed(graph.node)
        if node.op_type == "DequantizeLinear"
    }
    found = []
    for node in graph.node:
        index = SCALE_INPUTS.get(node.op_type)
        name = node.output[0] if node.output else ""
        if index is None or name not in computed or len(node.input) <= index:
            continue
        scale = node.input[index]
        if scale not in known:
            continue
        axes = (item.i for item in node.attribute if item.name == "axis")
        zero_point = node.input[index + 1] if len(node.input) > index + 1 else ""
        axis = next(axes, _DEFAULT_AXIS) if node.op_type == "QuantizeLinear" else _DEFAULT_AXIS
        shown = dequantized.get((name, scale), f"{name}/shown")
        step = known[scale].reshape(-1)
        found.append(QuantizedTensor(name, node.name or name, scale, zero_point, step, axis, shown))
    return found


def last_tensors(
    model: onnx.ModelProto, tensors: Iterable[QuantizedTensor]
) -> list[QuantizedTensor]:
    """Return the quantized tensors that outputs are computed from without another one between."""
    by_name = {tensor.name: tensor for tensor in tensors}
    producers = {name: node for node in model.graph.node for name in node.output}
    waiting, seen = [value.name for value in model.graph.output], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name not in by_name and name in producers:
            waiting.extend(producers[name].input)
    return [tensor for name, tensor in by_name.items() if name in seen]


def with_shown(model: onnx.ModelProto, tensors: Iterable[QuantizedTensor]) -> onnx.ModelProto:
    """Return a copy of a model that also puts out the dequantized values of some tensors."""
    copy = _copy(model)
    graph = copy.graph
    present = {name for node in graph.node for name in node.output}
    outputs = {value.name for value in graph.output}
    for tensor in tensors:
        if tensor.shown not in present:
            graph.node.append(_quantizer("DequantizeLinear", tensor, tensor.name, tensor.shown))
        if tensor.shown not in outputs:
            graph.output.append(_float_value(tensor.shown))
    return copy


def layer_by_layer(
    model: onnx.ModelProto,
    tensors: Sequence[QuantizedTensor],
    values: Mapping[str, NDArray[Any]],
) -> onnx.ModelProto:
    """Return a copy of a model whose layers each read given integers, not those of other layers.

    ::

        Conv -> QuantizeLinear -> t -> DequantizeLinear -> Conv

        Conv -> QuantizeLinear -> t -> DequantizeLinear -> (output result)
        (input given) -> QuantizeLinear -> DequantizeLinear -> Conv

    Parameters
    ----------
    model : onnx.ModelProto
    tensors : sequence of QuantizedTensor
        Where it is cut.
    values : mapping of str to array
        An example of each of its inputs, and of each tensor by its name ``shown``: their shapes.

    Returns
    -------
    onnx.ModelProto
        Its further inputs are named by `given`, its further outputs by `result`. It lacks outputs
        that are nothing but such a tensor.
    """
    copy = _copy(model)
    graph = copy.graph
    for value in graph.input:
        if value.name in values:
            value.CopyFrom(_float_value(value.name, values[value.name].shape, value))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend(node for node in nodes if node.op_type == "Constant")
    nodes = [node for node in nodes if node.op_type != "Constant"]
    integers = {tensor.name: f"{tensor.name}/integers" for tensor in tensors}
    for tensor in tensors:
        graph.input.append(_float_value(given(tensor), values[tensor.shown].shape))
        graph.node.append(
            _quantizer("QuantizeLinear", tensor, given(tensor), integers[tensor.name])
        )
    for node in nodes:
        node.input[:] = [integers.get(name, name) for name in node.input]
    graph.node.extend(nodes)
    shown = {tensor.shown for tensor in tensors}
    outputs = [value for value in graph.output if value.name not in shown]
    del graph.output[:]
    graph.output.extend(outputs)
    for tensor in tensors:
        graph.node.append(_quantizer("DequantizeLinear", tensor, tensor.name, result(tensor)))
        graph.output.append(_float_value(result(tensor)))
    return copy


def given(tensor: QuantizedTensor) -> str:
    """Return the name of the input of `layer_by_layer` that takes a tensor's dequantized values."""
    return f"{tensor.name}/given"


def result(tensor: QuantizedTensor) -> str:
    """Return the name of the output of `layer_by_layer` that shows what a layer computes."""
    return f"{tensor.name}/result"


def integer_operators(model: onnx.ModelProto) -> set[str]:
    """Return the names of the nodes that a file has in integers.

    Those that are integer operators, and those of a part that only dequantized values and constants
    enter and only quantizers leave.
    """
    graph = model.graph
    names = {
        node.name
        for node in graph.node
        if node.op_type.startswith(("QLinear", "QGemm")) or node.op_type.endswith("Integer")
    }
    for part in _float_parts(graph):
        names.update(node.name for node in part)
    return names - {""}


def _float_parts(graph: onnx.GraphProto) -> Iterator[list[onnx.NodeProto]]:
    """Yield the nodes between quantizers, part by part, where the part touches nothing else."""
    computed = _computed(graph)
    nodes = [node for node in graph.node if computed.intersection(node.input)]
    producers = {name: index for index, node in enumerate(nodes) for name in node.output}
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        for name in node.input:
            readers.setdefault(name, []).append(index)
    outputs = {value.name for value in graph.output}
    left = {index for index, node in enumerate(nodes) if node.op_type not in QDQ}
    while left:
        part, waiting, closed = [], [min(left)], True
        while waiting:
            index = waiting.pop()
            if index not in left:
                continue
            left.remove(index)
            node = nodes[index]
            part.append(node)
            read = computed.intersection(node.input)
            closed &= read <= producers.keys() and not outputs.intersection(node.output)
            waiting += [producers[name] for name in read if name in producers]
            waiting += [reader for name in node.output for reader in readers.get(name, [])]
        if closed:
            yield part


def _quantizer(kind: str, tensor: QuantizedTensor, source: str, result: str) -> onnx.NodeProto:
    from onnx import helper

    parameters = [name for name in (tensor.scale, tensor.zero_point) if name]
    axis = {"axis": tensor.axis} if tensor.step.size > 1 else {}
    return helper.make_node(kind, [source, *parameters], [result], f"{result}/{kind}", **axis)


def _float_value(
    name: str, shape: Sequence[int] | None = None, like: onnx.ValueInfoProto | None = None
) -> onnx.ValueInfoProto:
    from onnx import TensorProto, helper

    kind = TensorProto.FLOAT if like is None else like.type.tensor_type.elem_type
    return helper.make_tensor_value_info(name, kind, shape)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = type(model)()
    copy.CopyFrom(model)
    # they would contradict other shapes of inputs
    del copy.graph.value_info[:]
    return copy
