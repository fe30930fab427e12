"""An annotated graph as an ONNX graph, binding by binding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from tvmquant import formats
from tvmquant.errors import UnsupportedModelError
from tvmquant.export import opsets
from tvmquant.export.builder import OnnxBuilder
from tvmquant.export.call_writer import CallWriter
from tvmquant.export.layers import bias_of
from tvmquant.export.operators import WRITERS
from tvmquant.export.quantizers import (
    Quantizer,
    write_in_one_scale,
    write_input,
    write_rounding,
    write_sign,
)
from tvmquant.export.reading import Reading
from tvmquant.export.weights import WeightLayout, write_weight
from tvmquant.formats import UBINARY
from tvmquant.graph import Graph
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of, count_uses, span_name
from tvmquant.ir.tensor_types import dtype_of
from tvmquant.passes.accumulator import Quantized
from tvmquant.passes.region_operators import EXACT_INPUTS, is_embedding, is_exact_cast
from tvmquant.passes.regions import Chain
from tvmquant.passes.rounded_weights import weight_of


@dataclass(frozen=True)
class WrittenEdge:
    """A rounding to integers, as the file has it.

    Parameters
    ----------
    id : str
    var : Var
        What it is bound to in the annotated graph; with a reader, what is rounded for that.
    value : str
        Name of what its DequantizeLinear gives.
    scales : float32 array
        As they broadcast against it.
    reader : Var, optional
        What is computed of the integers, where only that reads them so.
    """

    id: str
    var: relax.Var
    value: str
    scales: npt.NDArray[np.float32]
    reader: relax.Var | None = None


class NetworkWriter:
    """Writes the function ``main`` of an annotated (L1) graph.

    Parameters
    ----------
    graph : Graph
    opset : int
    rounds_bias : bool
        Write biases of layers as integers of 32 bits.
    packs : bool
        Store weights of fewer than 8 bits in types of their own.

    Attributes
    ----------
    builder : OnnxBuilder
    reading : Reading
    edges : list of WrittenEdge
    kept_float : list of str
        Ids of fake_quants that the operator set has no integers for.
    """

    def __init__(self, graph: Graph, opset: int, *, rounds_bias: bool, packs: bool) -> None:
        self.graph, self.rounds_bias, self.packs = graph, rounds_bias, packs
        self.builder = OnnxBuilder(opset, (*graph.input_names, *graph.output_names))
        self.reading = Reading.of(graph.module)
        self.edges: list[WrittenEdge] = []
        self.kept_float: list[str] = []
        function = graph.main
        self.bindings = dict(bindings_of(function))
        self.parameters = list(function.params)
        self.biases = _biases(function)
        self.biased = {total: sums for sums, total in self.biases.items()}
        self._names: dict[relax.Expr, str | tuple[str, ...]] = dict(
            zip(function.params, graph.input_names, strict=True)
        )
        self._one_scale: dict[str, str] = {}

    def write(self) -> list[str]:
        """Append all nodes, and return the names of the outputs.

        Raises
        ------
        UnsupportedModelError
            If the file cannot express an operator; names the node.
        """
        for var, value in self.bindings.items():
            self._names[var] = self._written(var, value)
        body = self.graph.main.body.body
        results = list(body.fields) if isinstance(body, relax.Tuple) else [body]
        return self._as_outputs([self._name(result, "output") for result in results])

    def operand(self, reader: relax.Var, expr: relax.Expr, layer: str) -> str:
        """Return the name of what a call reads, rounded as the library rounds it for this call."""
        name = self._name(expr, layer)
        to = self.reading.rounded_for(reader, expr)
        if to is None or not opsets.holds(to.dtype, self.builder.opset):
            return name
        value = write_rounding(self.builder, name, to, f"{layer}/rounded", clips=True)
        scales = to.scales.astype(np.float32)
        self.edges.append(WrittenEdge(f"{layer}/{value}", expr, value, scales, reader))
        return value

    def integers_of(self, reader: relax.Var, expr: relax.Expr, held: Quantized, layer: str) -> str:
        """Return what a layer multiplies: the integers that it reads, all times one scale."""
        name = self.operand(reader, expr, layer)
        if name not in self._one_scale:
            self._one_scale[name] = write_in_one_scale(
                self.builder, name, held, f"{layer}/one_scale"
            )
        return self._one_scale[name]

    def held(self, expr: relax.Expr) -> Quantized | None:
        """Return what the library holds a variable in; None where that is no tensor of integers."""
        value = self.reading.values.get(expr) if isinstance(expr, relax.Var) else None
        return value if isinstance(value, Quantized) else None

    def rounded(self, var: relax.Var, name: str, label: str) -> str:
        """Return a value rounded to the integers that a mover, which averages, rounds it to."""
        held = self.held(var)
        if held is None or not opsets.holds(held.dtype, self.builder.opset):
            return name
        value = write_rounding(self.builder, name, held, label, clips=False)
        self.edges.append(WrittenEdge(label, var, value, held.scales.astype(np.float32)))
        return value

    @property
    def ties(self) -> str:
        """How the library rounds ties of what it quantizes."""
        calls = [v for v in self.bindings.values() if qop.is_call(v, qop.FAKE_QUANT)]
        even = any(qop.attributes(call).get("ties") == "even" for call in calls)
        return "even" if even else "up"

    # -- bindings -------------------------------------------------------------------------------

    def _written(self, var: relax.Var, value: relax.Expr) -> str | tuple[str, ...]:
        if isinstance(value, relax.TupleGetItem):
            return self._names[value.tuple_value][int(value.index)]
        if not isinstance(value, relax.Call):
            return self._name(value, str(var.name))
        if qop.is_call(value, qop.FAKE_QUANT):
            return self._fake_quant(var, value)
        if var in self.biased:
            return self._names[self.biased[var]]
        name = span_name(value) or str(var.name)
        writer = WRITERS.get(str(value.op.name)) if isinstance(value.op, tvm.ir.Op) else None
        if writer is None:
            raise UnsupportedModelError(
                f"node {name!r}: the operator {getattr(value.op, 'name', value.op)} cannot be "
                "written as ONNX"
            )
        return writer(CallWriter(self, var, value, name))

    def _name(self, expr: relax.Expr, layer: str) -> str:
        array = qop.constant_array(expr)
        if array is not None:
            return self.builder.constant(array, f"{layer}/constant")
        found = self._names[expr]
        assert isinstance(found, str)  # only TupleGetItem reads a tuple
        if not found:
            found = self._names[expr] = self._weight(self.bindings[expr])
        return found

    def _fake_quant(self, var: relax.Var, call: relax.Call) -> str:
        attrs = qop.attributes(call)
        if attrs["role"] == qop.WEIGHT:
            return ""  # the layer that multiplies its integers writes it
        quantizer = _quantizer_of(call, attrs)
        made = self.bindings.get(call.args[0])
        if self._reads_integers(made, quantizer):
            return write_input(self.builder, self._name(made.args[0], ""), attrs["id"])
        x = self.operand(var, call.args[0], attrs["id"])
        if quantizer.dtype == "int32" or qop.is_call(made, qop.DEQUANTIZE):
            return x  # sums that are kept whole; an input that is held as it is given
        if not opsets.holds(quantizer.dtype, self.builder.opset):
            self.kept_float.append(attrs["id"])
            return x
        if is_embedding(made):
            x = self._embedding(made, quantizer, attrs["id"])
        chain = self.reading.values.get(call.args[0])
        if isinstance(chain, Chain):
            x = self._number(x, chain, attrs["id"])
        first = self.reading.first_rounding.get(var)
        if first is not None:
            x = write_rounding(self.builder, x, first, f"{attrs['id']}/first", clips=True)
        if attrs["format"] == UBINARY.name:
            strict = bool(attrs.get("strict", 0))
            value = write_sign(self.builder, x, quantizer, attrs["id"], strict=strict)
        else:
            value = quantizer.write(self.builder, x, attrs["id"])
        scales = quantizer.scale_of_rank(len(call.ty.shape.values))
        self.edges.append(WrittenEdge(attrs["id"], var, value, scales))
        return value

    def _weight(self, call: relax.Call) -> str:
        """Write a weight for a layer that stays float."""
        attrs = qop.attributes(call)
        layout = WeightLayout(attrs["axis"], attrs["groups"])
        weight = weight_of(call, attrs)
        return write_weight(self.builder, weight, layout, attrs["id"], packs=self.packs)

    def _reads_integers(self, cast: Any, quantizer: Quantizer) -> TypeGuard[relax.Call]:
        """Whether a value is the cast of an input of 8-bit integers, all of which are kept."""
        if not is_exact_cast(cast, self.parameters) or cast.args[0] not in self.parameters:
            return False
        dtype = dtype_of(cast.args[0])
        kept = (quantizer.zero_point, quantizer.qmin, quantizer.qmax) == EXACT_INPUTS[dtype]
        return kept and dtype != "bool" and bool(np.all(quantizer.scale == 1.0))

    def _embedding(self, call: relax.Call, quantizer: Quantizer, name: str) -> str:
        """Read rows of a table that is stored in the integers that they are rounded to."""
        table = quantizer.write_constant(
            self.builder, qop.constant_array(call.args[0]), f"{name}.table"
        )
        axis = int(call.attrs.axis or 0) % len(call.args[0].ty.shape.values)
        rows = self._name(call.args[1], name)
        return self.builder.node("Gather", [table, rows], f"{name}/Gather", axis=axis)

    def _number(self, x: str, chain: Chain, name: str) -> str:
        """Replace what is no number, of a function at some of its inputs, by 0."""
        source = chain.source
        if not np.isnan(chain.values[source.qmin : source.qmax + 1]).any():
            return x
        missing = self.builder.node("IsNaN", [x], f"{name}/IsNaN")
        zero = self.builder.constant(np.float32(0.0), f"{name}/zero")
        return self.builder.node("Where", [missing, zero, x], f"{name}/Where")

    def _as_outputs(self, names: list[str]) -> list[str]:
        """Give results the names of outputs; an input, a constant, or one given twice is copied."""
        computed = {output for node in self.builder.nodes for output in node.output}
        renamed: dict[str, str] = {}
        for name, wanted in zip(names, self.graph.output_names, strict=True):
            if name in computed and name not in renamed:
                renamed[name] = wanted
                self.builder.rename(name, wanted)
            else:
                source = renamed.get(name, name)
                copied = self.builder.node("Identity", [source], f"{wanted}/Identity")
                self.builder.rename(copied, wanted)
        self.edges = [replace(e, value=renamed.get(e.value, e.value)) for e in self.edges]
        return list(self.graph.output_names)


def _quantizer_of(call: relax.Call, attrs: Mapping[str, Any]) -> Quantizer:
    scale, zero = (qop.constant_array(arg) for arg in call.args[1:3])
    held = formats.parse(attrs["format"])
    return Quantizer.along(
        scale.astype(np.float32), attrs["axis"], int(zero.reshape(-1)[0]), attrs["qmin"],
        attrs["qmax"], str(held.container),
    )  # fmt: skip


def _biases(function: relax.Function) -> dict[relax.Var, relax.Var]:
    """Map each sum of a layer that only a bias is added to, to what that gives."""
    uses, bindings = count_uses(function), dict(bindings_of(function))
    found: dict[relax.Var, relax.Var] = {}
    for var, value in bindings.items():
        tensors = [arg for arg in getattr(value, "args", []) if isinstance(arg, relax.Var)]
        read_here = len(tensors) == 1 and uses[tensors[0]] == 1
        if read_here and bias_of(bindings.get(tensors[0]), value) is not None:
            found[tensors[0]] = var
    return found
