"""Say what a compilation of a float model would give, without data and without compiling."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tvmquant.deploy.manifest import LayerInfo
    from tvmquant.graph import Graph
    from tvmquant.machine import TargetLike
    from tvmquant.passes.verify_integer_only import FloatOp


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
    graph: Graph,
    *,
    target: TargetLike = "native",
    threads: int | None = None,
    batch: int = 1,
    dynamic: bool = False,
) -> Preview:
    """Return the layers that a float (L0) graph would be compiled into.

    All have 8 bits, or what the model brings.

    The kernels are those of `tvmquant.compile_onnx`: ranges come from random items, the weights are
    rounded as there. With real data an epilogue may need other multipliers, of 64 bits.

    Parameters
    ----------
    graph : Graph
        As `tvmquant.load_onnx` returns it.
    target, threads, batch
        As of `tvmquant.build`.
    dynamic : bool
        As of `tvmquant.quantize` without a calibration.

    Raises
    ------
    TVMQuantError
        As `tvmquant.quantize` and `tvmquant.build` would; also where an extent of an input is not
        known.
    """
    from tvmquant.deploy.describe import describe_layers
    from tvmquant.layers import is_quantized
    from tvmquant.machine import Machine
    from tvmquant.passes import pipeline
    from tvmquant.passes.verify_integer_only import float_audit
    from tvmquant.quantization import quantize
    from tvmquant.random_calibration import calibrate_with_random_items
    from tvmquant.schedules.isa import multiplies_in_pairs

    machine = Machine.of(target, threads)
    bounded = multiplies_in_pairs(machine.target)
    known = dynamic or is_quantized(graph)
    ranges = None if known else calibrate_with_random_items(graph)
    integer = quantize(graph, ranges, bound_pairs=bounded, dynamic=dynamic).module
    lowered = pipeline.lower(integer, machine, batch)
    return Preview(describe_layers(integer, lowered, batch), float_audit(integer))
