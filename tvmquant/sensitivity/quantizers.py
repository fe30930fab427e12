"""What each bit width does to each weight and activation: the fake_quants of annotated graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from tvmquant.bit_choice import W8A8, BitChoice
from tvmquant.layers import Layer, quantizable_layers
from tvmquant.quantization import apply_calibration
from tvmquant.sensitivity.structure import ends_of, is_piecewise_linear
from tvmquant.twin import Twin
from tvmquant.twin.quantizer_module import FakeQuantize

if TYPE_CHECKING:
    from tvmquant.calibration import Calibration
    from tvmquant.graph import Graph
    from tvmquant.progress import Progress
    from tvmquant.reconstructed import Reconstructed

Quantizer = Callable[[Tensor], Tensor]


class Rounder(Protocol):
    """What rounds weights otherwise than to the nearest."""

    @property
    def settings(self) -> list[Any]:
        """JSON values that tell what it does from others."""
        ...

    def narrow(self, annotated: Graph, /) -> list[str]:
        """Return the layers of a calibrated graph (L1) that it rounds."""
        ...

    def __call__(self, annotated: Graph, layer: str, /) -> Reconstructed:
        """Return the weight of a layer of a calibrated graph (L1)."""
        ...


@dataclass(frozen=True)
class Quantizers:
    """The network's twin, and its quantizers at every width.

    Parameters
    ----------
    twin : Twin
        Of the annotated graph, in the mode "float".
    layers : tuple of Layer
    choices : dict of str to list of BitChoice
        What each layer may take.
    weights : dict of str to (dict of str to tensor)
        Rounded weight by layer and name of the format.
    activations : dict of str to (dict of str to Quantizer)
        By edge and name of the format. What the model rounds itself is none of them.
    readers : dict of str to int
        Layers that share an edge's activation width.
    ends : list of str
        The operator that computes each output; see `tvmquant.sensitivity.structure`.
    piecewise_linear : bool
        Whether outputs are piecewise linear in each weight and activation.
    """

    twin: Twin
    layers: tuple[Layer, ...]
    choices: dict[str, list[BitChoice]]
    weights: dict[str, dict[str, Tensor]]
    activations: dict[str, dict[str, Quantizer]]
    readers: dict[str, int]
    ends: list[str]
    piecewise_linear: bool

    def edges_of(self, layer: Layer) -> list[str]:
        """Return the activation edges of a layer's group."""
        group = [other for other in self.layers if other.group == layer.group]
        return list(dict.fromkeys(edge for other in group for edge in other.edges))


def make_quantizers(
    graph: Graph,
    calibration: Calibration,
    choices: Sequence[BitChoice],
    *,
    activation_scheme: str = "asymmetric",
    weight_method: str = "mse",
    bound_pairs: bool = True,
    rounder: Rounder | None = None,
    progress: Progress | None = None,
) -> Quantizers:
    """Annotate a float graph with every width and collect what its fake_quants do.

    Parameters are those of `tvmquant.quantize`, and what rounds weights, whose progress it reports.
    """
    layers = quantizable_layers(graph)
    wanted = list(dict.fromkeys([W8A8, *choices]))
    able = {
        layer.id: [layer.imported] if layer.imported else [c for c in wanted if layer.allows(c)]
        for layer in layers
    }
    weights: dict[str, dict[str, Tensor]] = {layer.id: {} for layer in layers}
    activations: dict[str, dict[str, Quantizer]] = {}
    wide_groups = {
        held: {
            layer.group
            for layer in layers
            if all(choice.activation != held for choice in able[layer.id])
        }
        for held in {choice.activation for choice in wanted}
    }
    twin, rounded = None, 0
    for choice in wanted:
        plan = {}
        for layer in layers:
            wide = layer.group in wide_groups[choice.activation]
            read = W8A8.activation if wide else choice.activation
            taken = BitChoice(choice.weight, read)
            usual = layer.imported or BitChoice(W8A8.weight, read)
            plan[layer.id] = taken if layer.allows(taken) else usual
        calibrated = apply_calibration(
            graph, calibration, choices=plan, activation_scheme=activation_scheme,
            weight_method=weight_method, bound_pairs=bound_pairs, correct_bias=False,
        )  # fmt: skip
        annotated = Twin(calibrated.module)
        twin = twin or annotated
        quantizers, edges = annotated.quantizers, annotated.weight_edges
        fixed = {edge.id for edge in annotated.edges if edge.fixed}
        anew = () if rounder is None else rounder.narrow(calibrated)
        for layer in layers:
            name = plan[layer.id].weight.name
            if name not in weights[layer.id]:
                weight, edge = annotated.weights[layer.id].detach(), edges[layer.id]
                quantizer = quantizers[edge]
                if rounder is not None and layer.id in anew:
                    assert isinstance(quantizer, FakeQuantize)  # or it would not be rounded anew
                    integers = rounder(calibrated, layer.id).weights[edge].array()
                    weight = torch.from_numpy(integers.copy()) * quantizer.steps_of(weight)
                    rounded += 1
                    if progress is not None:
                        progress(rounded, None)
                weights[layer.id][name] = quantizer(weight).detach()
            for edge in (edge for edge in layer.edges if edge not in fixed):
                activations.setdefault(edge, {}).setdefault(
                    plan[layer.id].activation.name, quantizers[edge]
                )
    assert twin is not None  # there is w8a8 at least
    sizes: dict[str, int] = {}
    for layer in layers:
        sizes[layer.group] = sizes.get(layer.group, 0) + 1
    readers = {edge: sizes[layer.group] for layer in layers for edge in layer.edges}
    return Quantizers(
        twin, layers, able, weights, activations, readers,
        ends_of(graph.module), is_piecewise_linear(graph.module),
    )  # fmt: skip
