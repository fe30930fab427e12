"""Say what a compilation of a float model would give, without data and without compiling."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvmquant.deploy.manifest import LayerInfo
    from tvmquant.graph import Graph
    from tvmquant.machine import TargetLike
    from tvmquant.passes.verify_integer_only import FloatOp

# Which operators become integer, and by which kernel, does not depend on the calibrated ranges.
NOMINAL_RANGE = (-1.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Preview:
    """What `preview` returns.

    Attributes
    ----------
    layers : list of LayerInfo
        As the manifest of the library will hold them.
    float_audit : list of FloatOp
        The operators that would stay float, and why.
    """

    layers: list[LayerInfo]
    float_audit: list[FloatOp]


def preview(
    graph: Graph, *, target: TargetLike = "native", threads: int | None = None, batch: int = 1
) -> Preview:
    """Return the layers that a float (L0) graph would be compiled into.

    Parameters
    ----------
    graph : Graph
        As `tvmquant.load_onnx` returns it.
    target, threads, batch
        As of `tvmquant.build`.

    Raises
    ------
    TVMQuantError
        As `tvmquant.quantize` and `tvmquant.build` would.
    """
    from tvmquant.deploy.describe import describe_layers
    from tvmquant.ir import quantized_ops as qop
    from tvmquant.ir.rewriter import bindings_of
    from tvmquant.levels import annotated
    from tvmquant.machine import Machine
    from tvmquant.passes import pipeline
    from tvmquant.passes.verify_integer_only import float_audit

    network = annotated(graph).module
    edges = [
        qop.attributes(value)["id"]
        for _, value in bindings_of(network["main"])
        if qop.is_call(value, qop.FAKE_QUANT)
    ]
    ranges = dict.fromkeys(edges, NOMINAL_RANGE)
    calibrated = pipeline.apply_calibration(network, ranges, weight_method="minmax")
    integer = pipeline.integerize(calibrated)
    lowered = pipeline.lower(integer, Machine.of(target, threads), batch)
    return Preview(describe_layers(integer, lowered), float_audit(integer))
