"""Shapes as operands of ONNX nodes, also where they depend on the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tvm import relax, sym, tirx

from tvmquant.errors import UnsupportedModelError

if TYPE_CHECKING:
    from tvmquant.export.call_writer import CallWriter


def is_known(extent: Any) -> bool:
    """Whether an extent is a number."""
    return isinstance(extent, int | tirx.IntImm)


def reshape_target(writer: CallWriter, extents: Sequence[Any]) -> str:
    """Return the operand of a Reshape: what is left of the elements is the one unknown extent."""
    if sum(not is_known(extent) for extent in extents) > 1:
        return exact_shape(writer, extents)
    return writer.integers([int(e) if is_known(e) else -1 for e in extents], "shape")


def broadcast_target(writer: CallWriter, source: Sequence[Any], extents: Sequence[Any]) -> str:
    """Return the operand of an Expand, in which 1 leaves an extent as it is.

    Parameters
    ----------
    writer : CallWriter
    source, extents : sequence
        Of what is broadcast, and of the result.
    """
    before = [1] * (len(extents) - len(source)) + list(source)
    wanted = [e if is_known(e) or is_known(s) else 1 for s, e in zip(before, extents, strict=True)]
    return exact_shape(writer, wanted)


def exact_shape(writer: CallWriter, extents: Sequence[Any]) -> str:
    """Return a vector of extents, each unknown one computed from the shape of an input."""
    if all(map(is_known, extents)):
        return writer.integers([int(extent) for extent in extents], "shape")
    parts = [
        writer.integers([int(extent)], "extent") if is_known(extent) else _computed(writer, extent)
        for extent in extents
    ]
    return writer.node("Concat", parts, axis=0)


def _computed(writer: CallWriter, extent: Any) -> str:
    """Return an extent that is a multiple of one of an input's, as a vector of one element."""
    graph = writer.network.graph
    for parameter, name in zip(graph.main.params, graph.input_names, strict=True):
        for axis, symbol in enumerate(parameter.ty.shape.values):
            factor = None if is_known(symbol) else _multiple(extent, symbol)
            if factor is None:
                continue
            shape = writer.node("Shape", [name])
            batch = writer.node("Gather", [shape, writer.integers([axis], "axis")], axis=0)
            if factor == 1:
                return batch
            return writer.node("Mul", [batch, writer.integers([factor], "factor")])
    raise UnsupportedModelError(
        f"node {writer.name!r}: its shape has the extent {extent}; expected a multiple of the "
        "batch, fix the others when importing"
    )


def _multiple(extent: Any, symbol: Any) -> int | None:
    """Return how often an extent holds a symbol; None where it is no multiple of it."""
    values = []
    for number in (1, 2):
        analyzer = sym.Analyzer()
        analyzer.bind(symbol, tirx.IntImm(str(symbol.ty.dtype), number))
        values.append(analyzer.simplify(extent))
    once, twice = values
    if not is_known(once) or not is_known(twice) or int(twice) != 2 * int(once):
        return None
    return int(once)


def extents_of(expr: relax.Expr) -> list[Any]:
    """Return the extents of a tensor."""
    return list(expr.ty.shape.values)
