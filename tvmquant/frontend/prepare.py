"""Reading an ONNX file: what can be wrong with it is found here, before anything is imported."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from tvmquant.errors import ModelError
from tvmquant.frontend.branches import all_graphs, read_names, separate_scopes, subgraphs
from tvmquant.frontend.dimensions import Array
from tvmquant.frontend.node import Node, read_tensor
from tvmquant.model_metadata import TIES

Source: TypeAlias = str | os.PathLike[str] | onnx.ModelProto

OPSETS = range(7, 29)
# ONNX withdrew their first version for another, but exporters wrote it
_DEPRECATED = ("GroupNormalization",)


@dataclass(frozen=True)
class Prepared:
    """A valid ONNX model, taken apart.

    Parameters
    ----------
    name : str
    nodes : tuple of Node
        In topological order, under unique names; only those an output depends on.
    constants : dict of str to array
        Initialisers, those of graphs inside of nodes too.
    opsets : dict of str to int
        Versions by domain, of ONNX's own operators as ``""``.
    inputs : tuple of onnx.ValueInfoProto
        Without those that are initialisers.
    outputs : tuple of onnx.ValueInfoProto
    own : bool
        Whether this project exported it, from a network that rounds ties up.
    """

    name: str
    nodes: tuple[Node, ...]
    constants: dict[str, Array]
    opsets: dict[str, int]
    inputs: tuple[onnx.ValueInfoProto, ...]
    outputs: tuple[onnx.ValueInfoProto, ...]
    own: bool = False


def prepare(source: Source, name: str | None) -> Prepared:
    """Read and check a model.

    Parameters
    ----------
    source : path or onnx.ModelProto
        A model given as an object must hold its data itself.
    name : str or None
        Name of the model, by default the stem of its file.

    Raises
    ------
    ModelError
        If the file cannot be read, is no ONNX model, is damaged, or refers to data outside its
        folder.
    """
    if isinstance(source, onnx.ModelProto):
        model, folder = onnx.ModelProto(), None
        model.CopyFrom(source)
        name = name or source.graph.name or "model"
        label = f"model {name!r}"
    else:
        path = Path(source)
        model, folder = _parse(path), path.parent
        name = name or path.stem
        label = str(path)
    if not model.HasField("graph") or not model.opset_import:
        raise ModelError(f"{label}: not an ONNX model (it holds no graph or no opset)")
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    graph = model.graph
    separate_scopes(graph)
    _load_external(graph, folder, label)
    constants = _initialisers(graph, label)
    inputs = tuple(value for value in graph.input if value.name not in constants)
    if not inputs:
        raise ModelError(f"{label}: the model has no inputs")
    if not graph.output:
        raise ModelError(f"{label}: the model has no outputs")
    opsets = {entry.domain: int(entry.version) for entry in model.opset_import}
    # a model of other domains only is refused by its operators
    opset = opsets.get("", opsets.get("ai.onnx", OPSETS[-1]))
    if opset not in OPSETS:
        raise ModelError(
            f"{label}: the model uses opset {opset}, supported are {OPSETS[0]} to {OPSETS[-1]}; "
            "export it again with an opset in this range"
        )
    opsets[""] = opset
    nodes = name_nodes(graph.node, opsets, set())
    known = {*constants, *(value.name for value in inputs)}
    _check_structure(nodes, graph.output, known, opsets, label)
    nodes = live_nodes(nodes, [value.name for value in graph.output])
    own = any((entry.key, entry.value) == (TIES, "up") for entry in model.metadata_props)
    return Prepared(name, tuple(nodes), constants, opsets, inputs, tuple(graph.output), own)


def check_with_onnx(nodes: Iterable[Node], label: str) -> None:
    """Check operands and attributes of every node against ONNX's schemas.

    Raises
    ------
    ModelError
        Naming the first node that is not valid.
    """
    context = onnx.checker.C.CheckerContext()
    context.ir_version = onnx.IR_VERSION
    for node in nodes:
        if node.op_type in _DEPRECATED:
            continue  # the checker refuses what is still in use
        context.opset_imports = {"": node.opset, node.proto.domain: node.opset}
        try:
            onnx.checker.check_node(_without_graphs(node.proto), context)
        except onnx.checker.ValidationError as error:
            text = str(error).strip().splitlines()[0]
            raise ModelError(
                f"{label}: node {node.name!r} ({node.op_type}) is not valid ONNX: {text}"
            ) from None


def _without_graphs(proto: onnx.NodeProto) -> onnx.NodeProto:
    """Return a node with empty graphs: what they read from outside the checker would not find."""
    if not any(subgraphs(proto)):
        return proto
    stripped = onnx.NodeProto()
    stripped.CopyFrom(proto)
    for graph in subgraphs(stripped):
        graph.Clear()
        graph.name = "empty"
    return stripped


def _parse(path: Path) -> onnx.ModelProto:
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{path}: cannot be read: {reason}") from None
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise ModelError(f"{path}: not an ONNX file, or a truncated one") from None
    return model


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for part in all_graphs(graph):
        yield from part.initializer
        for node in part.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def _load_external(graph: onnx.GraphProto, folder: Path | None, label: str) -> None:
    """Read external data into the model; files outside the model's folder are refused."""
    for tensor in _tensors(graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        where = f"{label}: tensor {tensor.name!r} has its data in {location!r}"
        if folder is None:
            raise ModelError(f"{where}; give the path of the model instead of an object")
        root = folder.resolve()
        path = (root / location).resolve()
        if not location or Path(location).is_absolute() or not path.is_relative_to(root):
            raise ModelError(f"{where}, which is outside the model's folder; refused")
        if not path.is_file():
            raise ModelError(f"{where}, which is missing; put that file beside the model")
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
        except ValueError:
            raise ModelError(f"{where} at an offset or length that is no number") from None
        size = path.stat().st_size
        length = size - offset if length < 0 else length
        if offset < 0 or offset + length > size:
            raise ModelError(f"{where}, which ends too early (truncated, or of another model)")
        with path.open("rb") as file:
            file.seek(offset)
            tensor.raw_data = file.read(length)
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _initialisers(graph: onnx.GraphProto, label: str) -> dict[str, Array]:
    parts = list(all_graphs(graph))
    if any(part.sparse_initializer for part in parts):
        raise ModelError(f"{label}: sparse initialisers are not supported; store them dense")
    constants: dict[str, Array] = {}
    for tensor in (tensor for part in parts for tensor in part.initializer):
        try:
            constants[tensor.name] = read_tensor(tensor)
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(
                f"{label}: initialiser {tensor.name!r} cannot be read, the file is damaged: {error}"
            ) from None
    return constants


def name_nodes(
    protos: Sequence[onnx.NodeProto], opsets: Mapping[str, int], used: set[str], prefix: str = ""
) -> list[Node]:
    """Give every node a unique name: its own, or ``<prefix><OpType>_<index>``.

    Parameters
    ----------
    protos : sequence of onnx.NodeProto
    opsets : mapping of str to int
        As of `Prepared`.
    used : set of str
        Names given before; those given now are added.
    prefix : str
    """
    taken = used | {proto.name for proto in protos if proto.name}
    nodes = []
    for index, proto in enumerate(protos):
        name = base = proto.name or f"{prefix}{proto.op_type}_{index}"
        suffix = 0
        while name in used or (name != proto.name and name in taken):
            suffix += 1
            name = f"{base}_{suffix}"
        used.add(name)
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        nodes.append(Node(proto, name, opsets.get(domain, 1)))
    return nodes


def _check_structure(
    nodes: Iterable[Node],
    outputs: Iterable[onnx.ValueInfoProto],
    known: set[str],
    opsets: Mapping[str, int],
    label: str,
) -> None:
    """Check that values are defined once, before they are read, in inner graphs too."""
    defined = {"", *known}
    for node in nodes:
        for name in node.inputs:
            if name not in defined:
                raise ModelError(
                    f"{label}: node {node.name!r} ({node.op_type}) reads {name!r}, "
                    "which nothing before it defines; the file is damaged"
                )
        for inner in subgraphs(node.proto):
            given = {value.name for value in inner.input}
            parts = name_nodes(inner.node, opsets, set(), f"{node.name}/")
            _check_structure(parts, inner.output, defined | given, opsets, label)
        for name in node.outputs:
            if name and name in defined:
                raise ModelError(f"{label}: value {name!r} is defined twice; the file is damaged")
            defined.add(name)
    for value in outputs:
        if value.name not in defined:
            raise ModelError(f"{label}: nothing defines output {value.name!r}; the file is damaged")


def live_nodes(nodes: Sequence[Node], outputs: Iterable[str]) -> list[Node]:
    """Return the nodes that the outputs depend on, knowing which of their outputs are not read."""
    needed = set(outputs)
    live = []
    for node in reversed(nodes):
        if needed.intersection(name for name in node.outputs if name):
            live.append(replace(node, unread=frozenset(node.proto.output) - needed))
            needed |= read_names(node.proto)
    return live[::-1]
