"""Record a straight-line Relax function as a list of torch calls on numbered values."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import tvm
from torch import Tensor
from tvm import relax

from tvmquant import formats
from tvmquant.errors import ModelError
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.dynamic_ops import DYNAMIC_QUANT
from tvmquant.ir.rewriter import bindings_of, span_name
from tvmquant.twin.attributes import static_shape
from tvmquant.twin.operators import make_function
from tvmquant.twin.quantizer_module import FakeQuantize, FakeSign

# A value is read from a slot (int) or is a constant (its name); a tuple of outputs nests them.
Key = int | str
KeyTree = Key | tuple["KeyTree", ...]

# Where a constant operand is the weight of a layer.
_WEIGHT_POSITIONS = {
    "relax.nn.conv2d": (1,),
    "relax.nn.conv2d_transpose": (1,),
    "relax.matmul": (0, 1),
}
_TRAINED_POSITIONS = {"relax.nn.batch_norm": (1, 2), "relax.nn.prelu": (1,)}


@dataclass(frozen=True)
class Edge:
    """What a ``fake_quant`` says of the tensor that it quantizes; see `quantized_ops`.

    ``fixed``: the scale came with the model, and is applied in every mode.
    ``bounded``: pairs of weights fit 16 bits (`tvmquant.weight_pairs`), of a layer in ``groups``.
    """

    id: str
    role: str
    format: str
    scheme: str
    group: str
    axis: int
    qmin: int
    qmax: int
    calibrated: bool
    fixed: bool
    bounded: bool
    groups: int

    @property
    def is_activation(self) -> bool:
        """Whether another operator reads the tensor."""
        return self.role == qop.ACTIVATION


@dataclass(frozen=True)
class Step:
    """One binding.

    Parameters
    ----------
    function : callable
        Computes the value from the operands.
    operands : tuple of int or str
        Slots and names of constants.
    result : int
        Slot of the value.
    dead : tuple of int
        Slots that no later step reads.
    edge : Edge, optional
        Set where the step is a ``fake_quant``; its operand is what it quantizes. What it computes
        is the quantizer of the edge.
    layer : str
        Set where the step is a convolution or dense layer: the name of its ONNX node; its first
        operand is the layer's input.
    rounds : bool
        Set where the step rounds a tensor by its range though the model does not ask for it: a
        float network passes it on.
    """

    function: Callable[..., Any]
    operands: tuple[Key, ...]
    result: int
    dead: tuple[int, ...] = ()
    edge: Edge | None = None
    layer: str = ""
    rounds: bool = False


@dataclass(frozen=True)
class Program:
    """A recorded function.

    Parameters
    ----------
    inputs : list of (name, extents)
        They fill the first slots; an extent of -1 may be anything.
    steps : list of Step
    result : int, str or nested tuple of them
    slots : int
        Number of slots.
    constants : dict of str to tensor
    trained : frozenset of str
        The names of the constants that are weights, biases or affine parameters.
    weights : dict of str to str
        From the layer (ONNX node) to the name of its weight.
    names : dict of relax.Expr to str
        From each constant of the function to its name.
    quantizers : dict of str to FakeQuantize
        By the id of the edge.
    """

    inputs: list[tuple[str, list[int]]]
    steps: list[Step]
    result: KeyTree
    slots: int
    constants: dict[str, Tensor]
    trained: frozenset[str]
    weights: dict[str, str]
    names: dict[relax.Expr, str]
    quantizers: dict[str, FakeQuantize]


def record(module: tvm.IRModule) -> Program:
    """Record the function ``main`` of a float, an annotated, or an integer graph.

    Raises
    ------
    UnsupportedModelError
        When an operator has no torch function; names the node.
    ModelError
        When the function is not straight-line, or an input has no known rank.
    """
    function = module["main"]
    recorder = _Recorder(function)
    steps = [step for var, value in bindings_of(function) for step in recorder.steps(var, value)]
    result = recorder.output(function.body.body)
    inputs = [(str(p.name), _extents(p)) for p in function.params]
    return Program(
        inputs,
        _with_liveness(steps, set(flat(result)), len(inputs)),
        result,
        recorder.slot_count,
        recorder.constants,
        frozenset(recorder.trained),
        recorder.weights,
        recorder.names,
        recorder.quantizers,
    )


class _Recorder:
    def __init__(self, function: relax.Function) -> None:
        self.slots: dict[Any, int] = {p: i for i, p in enumerate(function.params)}
        self.slot_count = len(self.slots)
        self.constants: dict[str, Tensor] = {}
        self.trained: set[str] = set()
        self.weights: dict[str, str] = {}
        self.names: dict[Any, str] = {}
        self.quantizers: dict[str, FakeQuantize] = {}
        self._layers = _layers_of_weights(function)

    def steps(self, var: relax.Var, value: relax.Expr) -> Iterator[Step]:
        """Yield the step of one binding, or none for another name of the same value."""
        if isinstance(value, relax.Var):
            self.slots[var] = self.slots[value]
            return
        edge = _edge(value) if qop.is_call(value, qop.FAKE_QUANT) else None
        if edge is not None:
            self.quantizers[edge.id] = _quantizer(value, edge)
        compute = _function(var, value, edge)
        operands = tuple(self._operands(var, value))
        self.slots[var] = self.slot_count
        self.slot_count += 1
        layer = span_name(value) if qop.is_call(value, *_WEIGHT_POSITIONS) else ""
        rounds = qop.is_call(value, DYNAMIC_QUANT) and not qop.attributes(value)["fixed"]
        yield Step(compute, operands, self.slots[var], edge=edge, layer=layer, rounds=rounds)

    def output(self, body: relax.Expr) -> KeyTree:
        """Return where the result of the function is found."""
        if isinstance(body, relax.Tuple):
            return tuple(self.output(field) for field in body.fields)
        if isinstance(body, tvm.ir.GenericConst):
            return self._constant(body, "", body, 0)
        return self.slots[body]

    def _operands(self, var: relax.Var, value: relax.Expr) -> Iterator[Key]:
        """Yield the tensors that a binding reads; shapes and numbers belong to its function."""
        if isinstance(value, relax.TupleGetItem):
            yield self.slots[value.tuple_value]
            return
        arguments = list(value.args) if isinstance(value, relax.Call) else [value]
        if qop.is_call(value, qop.FAKE_QUANT):
            arguments = arguments[:1]  # the others are its quantizer's
        for position, argument in enumerate(arguments):
            fields = list(argument.fields) if isinstance(argument, relax.Tuple) else [argument]
            for field in fields:
                if field in self.slots:  # a symbolic extent is a variable too, but holds no tensor
                    yield self.slots[field]
                elif isinstance(field, tvm.ir.GenericConst):
                    layer = self._layers.get(var) or span_name(value) or str(var.name)
                    yield self._constant(field, layer, value, position)

    def _constant(self, constant: Any, layer: str, user: relax.Expr, position: int) -> str:
        """Return the name of a constant, the same for all its uses."""
        if constant in self.names:
            return self.names[constant]
        tensor = torch.from_numpy(np.array(constant.value.numpy()))
        op = str(user.op.name) if isinstance(user, relax.Call) else "constant"
        role = f"{op.rpartition('.')[2]}.{position}"
        trained = position in _TRAINED_POSITIONS.get(op, ())
        if position in _WEIGHT_POSITIONS.get(op, ()) or _is_weight(user, position):
            role, trained = "weight", True
        elif op == "relax.add" and tensor.numel() > 1:
            role, trained = "bias", True
        name = self._unused(f"{layer}:{role}".replace(".", "_"))
        self.names[constant] = name
        self.constants[name] = tensor
        if trained and tensor.is_floating_point():
            self.trained.add(name)
            if role == "weight":
                self.weights[layer] = name
        return name

    def _unused(self, name: str) -> str:
        unused, count = name, 1
        while unused in self.constants:
            count += 1
            unused = f"{name}:{count}"
        return unused


def _quantizer(call: relax.Call, edge: Edge) -> FakeQuantize:
    scale, zero_point, *multiplier = (
        torch.from_numpy(np.array(qop.constant_array(arg))) for arg in call.args[1:]
    )
    if isinstance(formats.parse(edge.format), formats.Binary):
        strict = bool(qop.attributes(call).get("strict", 0))
        return FakeSign(
            scale, zero_point, edge.qmin, edge.qmax, axis=edge.axis,
            multiplier=multiplier[0] if multiplier else None, strict=strict,
        )  # fmt: skip
    return FakeQuantize(
        scale, zero_point, edge.qmin, edge.qmax, axis=edge.axis,
        multiplier=multiplier[0] if multiplier else None, bounded=edge.bounded,
        groups=edge.groups,
    )  # fmt: skip


def _unquantized(x: Tensor) -> Tensor:
    """Stand in for the quantizer of an edge, which the twin holds."""
    return x


def _function(var: relax.Var, value: relax.Expr, edge: Edge | None) -> Callable[..., Any]:
    if edge is not None:
        return _unquantized
    if isinstance(value, relax.Call):
        return make_function(value)
    if isinstance(value, relax.TupleGetItem):
        return operator.itemgetter(int(value.index))
    if isinstance(value, relax.Tuple):
        return lambda *fields: fields
    if isinstance(value, tvm.ir.GenericConst):
        return lambda constant: constant
    raise ModelError(
        f"variable {var.name!r} is a {type(value).__name__}, which a straight-line graph does not "
        "hold"
    )


def _edge(call: relax.Call) -> Edge:
    attrs = qop.attributes(call)
    flags = {
        "bounded": bool(attrs.get("bounded", 0)),
        "fixed": bool(attrs.get("fixed", 0)),
        "groups": attrs.get("groups", 1),
    }
    fields = {name: attrs[name] for name in Edge.__dataclass_fields__.keys() - flags}
    return Edge(**{**fields, **flags, "calibrated": bool(attrs["calibrated"])})


def _is_weight(user: relax.Expr, position: int) -> bool:
    """Whether a constant is what a fake_quant quantizes."""
    return position == 0 and qop.is_call(user, qop.FAKE_QUANT)


def _layers_of_weights(function: relax.Function) -> dict[Any, str]:
    """Map the fake_quant of each weight to the name of the layer that it belongs to."""
    layers: dict[Any, str] = {}
    for var, value in bindings_of(function):
        if qop.is_call(value, *_WEIGHT_POSITIONS):
            for position in _WEIGHT_POSITIONS[str(value.op.name)]:
                if isinstance(value.args[position], relax.Var):
                    layers[value.args[position]] = span_name(value) or str(var.name)
    return layers


def _extents(param: relax.Var) -> list[int]:
    shape = getattr(param.ty, "shape", None)
    if shape is None:
        raise ModelError(f"the input {str(param.name)!r} has no known shape; import it with one")
    return static_shape(shape.values)


def flat(tree: KeyTree) -> Iterator[Key]:
    """Yield the keys of a result."""
    if isinstance(tree, tuple):
        for branch in tree:
            yield from flat(branch)
    else:
        yield tree


def _with_liveness(steps: list[Step], results: set[Key], inputs: int) -> list[Step]:
    """Note for every step which slots are read for the last time."""
    last = dict.fromkeys(range(inputs), 0)
    for index, step in enumerate(steps):
        last[step.result] = index
        last.update((key, index) for key in step.operands if isinstance(key, int))
    dead: dict[int, list[int]] = {}
    for slot, index in last.items():
        if slot not in results:
            dead.setdefault(index, []).append(slot)
    return [replace(step, dead=tuple(dead.get(i, ()))) for i, step in enumerate(steps)]
