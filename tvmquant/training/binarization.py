"""Choose the layers of a network that become binary, and rewrite them."""

from __future__ import annotations

import difflib
import fnmatch
from typing import Any

import torch
import tvm

from tvmquant.data import Dataset, arrays_of
from tvmquant.errors import TrainingError
from tvmquant.formats import BINARY, INT8, UBINARY, Uniform
from tvmquant.graph import Graph
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of
from tvmquant.layers import quantizable_layers
from tvmquant.levels import canonical
from tvmquant.passes.insert_binarization import InsertBinarization, Rewrite, reasons_against
from tvmquant.training.batch_norm import reestimate
from tvmquant.training.method_sections import Binarization
from tvmquant.twin import Twin

# Of the weights of one layer, while it is trained.
FORMATS = {"sign": BINARY, "ternary": Uniform(2, signed=True), "two_scales": INT8, "sum": INT8}


def binarized(graph: Graph, how: Binarization) -> tuple[Graph, tuple[str, ...]]:
    """Return a network whose layers are binary, and the names of those that became so.

    One that holds signs already stays as it is, unless layers are named.

    Parameters
    ----------
    graph : Graph
        Level L0.
    how : Binarization

    Raises
    ------
    TrainingError
        When there is no layer of a name, or one cannot be binary; names it and says why.
    """
    rewrite = Rewrite(
        FORMATS[how.weights].name, how.inputs == "sign", how.thresholds, how.shortcuts,
        how.activation,
    )  # fmt: skip
    module = canonical(graph, fold_batch_norm=False).module
    if not how.layers and _holds_signs(module):
        return graph, ()
    layers = chosen_layers(graph, how.layers, reasons_against(module, rewrite))
    if not layers:
        raise TrainingError(
            f"binarization: no layer of the model {graph.name!r} but its ends can be binary; name "
            "some in binarization.layers to see why they cannot"
        )
    rewriting = tvm.transform.Sequential([InsertBinarization(layers, rewrite)])
    return graph.with_module(rewriting(module)), layers


def chosen_layers(
    graph: Graph, patterns: tuple[str, ...], reasons: dict[str, str]
) -> tuple[str, ...]:
    """Return the names of layers that patterns match, or of all but the ends that can be binary.

    Parameters
    ----------
    graph : Graph
        Level L0.
    patterns : tuple of str
    reasons : dict of str to str
        Why a layer cannot be binary; "" where it can.

    Raises
    ------
    TrainingError
        When a pattern matches no layer, or one that cannot be binary.
    """
    layers = quantizable_layers(graph)
    if not patterns:
        return tuple(layer.id for layer in layers if not layer.position and not reasons[layer.id])
    found: dict[str, None] = {}
    for pattern in patterns:
        names = fnmatch.filter((layer.id for layer in layers), pattern)
        if not names:
            close = difflib.get_close_matches(pattern, [layer.id for layer in layers], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TrainingError(f"binarization.layers: the model has no layer {pattern!r}{hint}")
        found |= dict.fromkeys(names)
    for name in found:
        if reasons[name]:
            raise TrainingError(
                f"binarization.layers: layer {name!r} cannot be binary: {reasons[name]}"
            )
    return tuple(found)


def settled(graph: Graph, data: Dataset) -> Graph:
    """Return a binary network whose normalizations have the statistics of some inputs.

    Those of a float network say nothing of sums of signs, nor do the ranges that follow from them.

    Parameters
    ----------
    graph : Graph
        Level L0, binary.
    data : Dataset
    """
    twin = Twin(graph.module)
    batches = (torch.from_numpy(arrays_of(batch)[0]) for batch, _labels in data)
    reestimate(twin, (inputs for inputs in batches if len(inputs) > 1))
    return graph.with_module(twin.write_back())


def _holds_signs(module: Any) -> bool:
    """Whether something is of one bit already."""
    return any(
        qop.is_call(value, qop.FAKE_QUANT)
        and qop.attributes(value)["format"] in (BINARY.name, UBINARY.name)
        for _, value in bindings_of(module["main"])
    )
