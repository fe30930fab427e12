"""An annotated graph as an ONNX file in QDQ form, which other runtimes run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np
import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from onnx import helper
from tvm import relax

from tvmquant import model_metadata
from tvmquant.atomic_write import atomic_write
from tvmquant.bit_choice import BitChoice
from tvmquant.errors import DataError, ModelError, QuantizationError
from tvmquant.export import opsets
from tvmquant.export.network import NetworkWriter, WrittenEdge
from tvmquant.graph import Graph
from tvmquant.ir.rewriter import span_name
from tvmquant.passes.region_kind import Value

if TYPE_CHECKING:
    from tvmquant.allocation import Plan

Bias = Literal["float", "int32"]
BIASES: Final = get_args(Bias)


@dataclass(frozen=True)
class Exported:
    """An ONNX model, and what is known of it.

    Attributes
    ----------
    model : onnx.ModelProto
    graph : Graph
        The annotated graph that it was written from.
    edges : tuple of WrittenEdge
        Where it rounds to integers.
    held : mapping of Var to Value
        What the library makes of each variable of the graph.
    choices : dict of str to str
        The choice of every layer, by its id.
    differences : tuple of str
        What it computes otherwise than the library, in words.
    """

    model: onnx.ModelProto
    graph: Graph
    edges: tuple[WrittenEdge, ...]
    held: Mapping[relax.Var, Value]
    choices: dict[str, str]
    differences: tuple[str, ...]


def to_onnx(
    graph: Graph,
    *,
    opset: int = opsets.DEFAULT,
    bias: Bias = "float",
    packs: bool = True,
    plan: Plan | None = None,
) -> Exported:
    """Return an annotated graph as an ONNX model in QDQ form; see `export_onnx`."""
    opsets.check_opset(opset)
    if graph.level != "L1":
        raise QuantizationError(
            f"a graph of level {graph.level}; expected an annotated one (L1), as "
            "tvmquant.quantization.apply_calibration returns it"
        )
    if bias not in BIASES:
        raise QuantizationError(f"bias {bias!r}; expected {' or '.join(BIASES)}")
    writer = NetworkWriter(graph, opset, rounds_bias=bias == "int32", packs=packs)
    outputs = writer.write()
    writer.builder.keep_needed(outputs)
    written = helper.make_graph(
        writer.builder.nodes,
        graph.name,
        [_value(*signature) for signature in graph.inputs],
        [_value(*signature) for signature in graph.outputs],
        writer.builder.constants,
    )
    opset_imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        written,
        opset_imports=opset_imports,
        ir_version=helper.find_min_ir_version_for(opset_imports),
        producer_name="tvmquant",
        producer_version=version("tvmquant"),
    )
    choices, differences = _choices(writer), _differences(writer, bias)
    facts = {
        model_metadata.VERSION: version("tvmquant"),
        model_metadata.LAYERS: json.dumps(choices),
        model_metadata.TIES: writer.ties,
        model_metadata.DIFFERENCES: json.dumps(differences),
        **({model_metadata.PLAN: plan.model_dump_json()} if plan is not None else {}),
    }
    helper.set_model_props(model, facts)
    return Exported(
        model, graph, tuple(writer.edges), writer.reading.values, choices, tuple(differences)
    )


def export_onnx(
    graph: Graph,
    path: str | os.PathLike[str],
    *,
    opset: int = opsets.DEFAULT,
    bias: Bias = "float",
    packs: bool = True,
    plan: Plan | None = None,
) -> Exported:
    """Write an annotated graph as an ONNX file in QDQ form.

    Every tensor that the library rounds to integers passes a QuantizeLinear and a DequantizeLinear
    of its scale and zero point, every weight is stored in the integers that the library multiplies.
    The nodes of layers have the names of the original's. The metadata hold the version of
    tvmquant, the choice of every layer, the plan, and what the file computes otherwise than the
    library: above all, runtimes round half to even at a float scale, where the library rounds half
    up at a dyadic number.

    Parameters
    ----------
    graph : Graph
        Level L1, calibrated: from `tvmquant.quantization.apply_calibration`.
    path : path
        The file; replaced at once or not at all.
    opset : int
        13 to 25. Below 21 there are no integers of 4 and 16 bits: weights of fewer than 8 bits are
        stored in bytes, and results that the library keeps in 16 bits stay float. Weights of 2 bits
        are stored as such from 25 on.
    bias : {"float", "int32"}
        Biases as the library adds them; or in steps of the accumulator, as integers of 32 bits, for
        runtimes that run layers in integers only then.
    packs : bool
        Store weights of fewer than 8 bits in types of their own, where the opset has these. Such
        layers run in float in ONNX Runtime and OpenVINO; stored in bytes, in integers.
    plan : Plan, optional
        Of the bit widths, for the metadata.

    Returns
    -------
    Exported

    Raises
    ------
    ModelError
        If the opset is out of range, or the file is larger than the 2 GB that one file may have.
    QuantizationError
        If the graph is not annotated, or a tensor has no scale; names it.
    UnsupportedModelError
        If an operator has no form in ONNX; names the node.
    DataError
        If the file cannot be written.
    """
    exported = to_onnx(graph, opset=opset, bias=bias, packs=packs, plan=plan)
    try:
        content = exported.model.SerializeToString()
    except (EncodeError, ValueError) as error:
        raise ModelError(
            f"model {graph.name!r}: ONNX files hold at most 2 GB, and this one would be larger; "
            "export a smaller model"
        ) from error
    onnx.checker.check_model(content, full_check=True)
    try:
        with atomic_write(path) as part:
            Path(part).write_bytes(content)
    except OSError as error:
        raise DataError(
            f"the model cannot be written to {str(path)!r}: {error.strerror}"
        ) from error
    return exported


def _value(name: str, shape: tuple[int | None, ...], dtype: str) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    # an unknown first extent is the batch, of whatever else only the rank is known
    extents = ["N" if n is None and axis == 0 else n for axis, n in enumerate(shape)]
    return helper.make_tensor_value_info(name, kind, extents)


def _choices(writer: NetworkWriter) -> dict[str, str]:
    layers = writer.reading.layers.values()
    return {
        span_name(layer.call): str(BitChoice(layer.weight.format, layer.x.format))
        for layer in layers
    }


def _differences(writer: NetworkWriter, bias: Bias) -> list[str]:
    rounds = "half up" if writer.ties == "up" else "half to even"
    found = [
        "runtimes round half to even at a float scale, the library "
        f"{rounds} at a dyadic number beside it"
    ]
    if bias == "int32" and writer.reading.layers:
        found.append("biases are rounded to steps of the accumulator, which the library's are not")
    if writer.kept_float:
        found.append(
            f"opset {writer.builder.opset} has no integers of 16 bits, in which the library keeps "
            f"{', '.join(writer.kept_float)}; the file leaves these float"
        )
    return found
