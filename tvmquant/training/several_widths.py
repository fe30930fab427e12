"""One network whose layers change their bit widths: a learned step, perhaps statistics, of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor, nn

from tvmquant import formats
from tvmquant.bit_choice import BitChoice
from tvmquant.calibration import Calibration
from tvmquant.errors import TrainingError
from tvmquant.formats import Format
from tvmquant.graph import Graph
from tvmquant.layers import quantizable_layers, uniform_choices
from tvmquant.passes.split_residual_width import RESIDUAL
from tvmquant.quantization import activation_formats
from tvmquant.training.quantizers import TrainedQuantizer
from tvmquant.training.recipe import Recipe
from tvmquant.training.start import start_of
from tvmquant.twin import Twin
from tvmquant.twin.quantizer_module import FakeQuantize, FakeSign, WeightQuantizer

# What tells the sets of a normalization apart: its layer's weights, or all that its layer has.
NormsBy = Literal["weight", "choice"]
_KEYS: Final[Mapping[str, Callable[[BitChoice], str]]] = {
    "weight": lambda choice: choice.weight.name,
    "choice": str,
}


class SwitchedQuantizer(nn.Module):
    """One quantizer for each format of a tensor, of which one is chosen.

    Parameters
    ----------
    quantizers : mapping of str to FakeQuantize
        By the name of the format.
    channels : tensor
        Scales as the graph holds them; one for the whole tensor is repeated.

    Attributes
    ----------
    by_format : ModuleDict
    format : str
        Of the chosen one.
    scale, zero_point, qmin, qmax : tensors
        As of `tvmquant.twin.quantizer_module.Quantizer`, of what is chosen.
    """

    def __init__(self, quantizers: Mapping[str, FakeQuantize], channels: Tensor) -> None:
        super().__init__()
        self.by_format = nn.ModuleDict(dict(quantizers))
        self.format = next(iter(quantizers))
        self._shape = channels.shape

    @property
    def chosen(self) -> FakeQuantize:
        """The one that quantizes at present."""
        # no attribute: torch would keep it in checkpoints as a module of its own
        found = self.by_format[self.format]
        assert isinstance(found, FakeQuantize)
        return found

    def choose(self, name: str) -> None:
        """Quantize to the format of this name, one of `by_format`, from now on."""
        self.format = name

    def forward(self, x: Tensor) -> Tensor:
        """Return the tensor quantized and dequantized."""
        found: Tensor = self.chosen(x)
        return found

    def written(self, weight: Tensor) -> Tensor:
        """Return what a graph holds of a weight."""
        chosen = self.chosen
        return chosen.written(weight) if isinstance(chosen, WeightQuantizer) else weight

    @property
    def scale(self) -> Tensor:  # noqa: D102
        return self.chosen.scale.expand(self._shape)

    @property
    def zero_point(self) -> Tensor:  # noqa: D102
        return self.chosen.zero_point

    @property
    def qmin(self) -> Tensor:  # noqa: D102
        return self.chosen.qmin

    @property
    def qmax(self) -> Tensor:  # noqa: D102
        return self.chosen.qmax


class SwitchedNumbers(nn.Module):
    """What stands for a constant of a normalization, once for each width.

    Parameters
    ----------
    given : tensor
        What all begin with.
    keys : sequence of str
    """

    def __init__(self, given: Tensor, keys: Sequence[str]) -> None:
        super().__init__()
        self._numbers = {key: f"of_{key}" for key in keys}
        for name in self._numbers.values():
            copy = given.detach().clone()
            if isinstance(given, nn.Parameter):
                self.register_parameter(name, nn.Parameter(copy))
            else:
                self.register_buffer(name, copy)

    def __contains__(self, key: str) -> bool:
        return key in self._numbers

    def __getitem__(self, key: str) -> Tensor:
        found: Tensor = getattr(self, self._numbers[key])
        return found


@dataclass(frozen=True)
class Formats:
    """What a layer can hold.

    Parameters
    ----------
    weights, activations : tuple of Format
        From the widest; one of each, where it cannot be chosen.
    """

    weights: tuple[Format, ...]
    activations: tuple[Format, ...]

    def check(self, layer: str, choice: BitChoice) -> None:
        """Refuse a choice that is none of these.

        Raises
        ------
        TrainingError
        """
        if choice.weight not in self.weights or choice.activation not in self.activations:
            names = [", ".join(map(str, held)) for held in (self.weights, self.activations)]
            raise TrainingError(
                f"layer {layer!r} is not trained at {choice}; its weights are at {names[0]}, and "
                f"what it reads at {names[1]}"
            )


class SeveralWidths:
    """Let a twin compute at any of several widths, layer by layer.

    What the layers do not read, and the ends, stay as in the graph. What a residual connection
    shares with a layer has a step for each width of the latter.

    Parameters
    ----------
    graph : Graph
        Level L0.
    calibration : Calibration
        With ``fold_batch_norm`` as the recipe has it.
    recipe : Recipe
    choices : sequence of BitChoice
        From the widest. A layer takes any format of a weight with any of an activation of them.
    norms_by : {"weight", "choice"}, optional
        Normalizations have a set of gains, shifts and statistics for each format of the weight
        whose results they get ("switchable", Yu et al., 2019), or for each choice of their layer;
        default: one for all. Of a uniform choice, for all of them alike, ends included.
    per_tensor : bool
        Whether a weight has one step at each width, instead of one for each channel.

    Attributes
    ----------
    twin : Twin
        In the mode "quantized".
    quantizers : list of TrainedQuantizer
        Of all widths.
    switched : dict of str to SwitchedQuantizer
        By the id of the edge, where there are several widths.
    weight_edges : dict of str to str
        As of the twin.
    formats : dict of str to Formats
        By layer.
    choices : dict of str to BitChoice
        What each layer has at present; at first, the widest.

    Raises
    ------
    TrainingError
        When no layer can change its widths.
    """

    def __init__(
        self,
        graph: Graph,
        calibration: Calibration,
        recipe: Recipe,
        choices: Sequence[BitChoice],
        *,
        norms_by: NormsBy | None = None,
        per_tensor: bool = False,
    ) -> None:
        self.graph, self.calibration, self.recipe = graph, calibration, recipe
        self.layers = quantizable_layers(graph)
        # where one has a step of its own for residual connections, this has
        narrowest = min(choices, key=lambda choice: choice.activation.bits)
        start = self._start(uniform_choices(self.layers, narrowest))
        self.twin = Twin(start.module, mode="quantized")
        self.quantizers: list[TrainedQuantizer] = []
        self.formats: dict[str, Formats] = {}
        self.weight_edges = self.twin.weight_edges
        self.switched: dict[str, SwitchedQuantizer] = {}
        self._put_in(choices, per_tensor)
        self._key_of: Callable[[BitChoice], str] = str
        self._norm_layers: dict[str, str] = {}
        if norms_by is not None:
            self._key_of = _KEYS[norms_by]
            self._put_norms_in(choices)
        self.set_widths(choices[0])

    def set_widths(
        self,
        choices: BitChoice | Mapping[str, BitChoice],
        norms: Mapping[str, BitChoice] | None = None,
    ) -> None:
        """Compute at these widths from now on.

        Parameters
        ----------
        choices : BitChoice, or mapping of str to BitChoice
            Of all layers but those that cannot take it; or by layer, w8a8 where it is not named.
        norms : mapping of str to BitChoice, optional
            What says by layer which set normalizations take, where that is another, such as the
            choice of a layer that cannot take it.

        Raises
        ------
        QuantizationError
            When layers that read the same activation differ, or a layer is none of the graph's.
        TrainingError
            When a layer was not prepared for its choice; names the layer.
        """
        if isinstance(choices, BitChoice):
            wanted = dict.fromkeys((layer.id for layer in self.layers), choices)
            taken = uniform_choices(self.layers, choices)
        else:
            wanted = {layer.id: layer.usual for layer in self.layers} | dict(choices)
            taken = wanted
        held = activation_formats(self.layers, taken)
        for layer in self.layers:
            self.formats[layer.id].check(layer.id, taken[layer.id])
            held[self.weight_edges[layer.id]] = taken[layer.id].weight
        for edge, quantizer in self.switched.items():
            quantizer.choose(held[edge.removesuffix(RESIDUAL)].name)
        for name, layer_id in self._norm_layers.items():
            key = self._key_of((norms or wanted)[layer_id]) if layer_id else self._widest
            numbers = self._numbers[name]
            self.twin.substitutes[name] = numbers[key if key in numbers else self._widest]
        self.choices = taken

    def drawn(self, random: torch.Generator) -> dict[str, BitChoice]:
        """Return formats drawn for each weight, and for each group of tied activations."""

        def one_of(candidates: Sequence[Format]) -> Format:
            return candidates[int(torch.randint(len(candidates), (), generator=random))]

        read: dict[str, Format] = {}
        found = {}
        for layer in self.layers:
            able = self.formats[layer.id]
            if layer.group not in read:
                read[layer.group] = one_of(able.activations)
            found[layer.id] = BitChoice(one_of(able.weights), read[layer.group])
        return found

    def graph_of(self, choices: BitChoice | Mapping[str, BitChoice]) -> Graph:
        """Return the network (L1) at these widths, which it keeps."""
        self.set_widths(choices)
        start = self._start(self.choices)
        twin = Twin(start.module, mode="quantized")
        twin.substitutes = self.twin.constants
        own = self.twin.quantizers
        for edge in twin.quantizers:
            twin.replace_quantizer(edge, own[edge])
        return start.with_module(twin.write_back())

    def step(self, edge: str, held: Format) -> float:
        """Return the step of an edge at a format, of channels the mean."""
        switched = self.switched.get(edge)
        found = switched.by_format[held.name] if switched else self.twin.quantizers[edge]
        assert isinstance(found, FakeQuantize)
        return float(found.scale.detach().mean())

    def _start(self, choices: Mapping[str, BitChoice]) -> Graph:
        return start_of(self.graph, self.calibration, choices, self.recipe)

    def _put_in(self, choices: Sequence[BitChoice], per_tensor: bool) -> None:
        """Replace the twin's quantizers by those of all widths."""
        given = self._given(choices)
        found: dict[str, dict[str, FakeQuantize]] = {}
        edges = {edge.id: edge for edge in self.twin.edges}
        of_weights = set(self.weight_edges.values())
        for name, table in given.items():
            is_weight = name in of_weights
            rule = self.recipe.weights if is_weight else self.recipe.activations
            # wide layers read the same integers as their residual connection
            new = dict(found.get(name.removesuffix(RESIDUAL), {}))
            for held, old in table.items():
                if edges[name].fixed or isinstance(old, FakeSign):
                    new[held] = old
                    continue
                whole = is_weight and per_tensor and len(table) > 1
                start = of_one_scale(old) if whole else old
                new[held] = trained = TrainedQuantizer(start, rule, per_item=not is_weight)
                self.quantizers.append(trained)
            found[name] = new
            if len(new) == 1:
                self.twin.replace_quantizer(name, *new.values())
                continue
            self.switched[name] = SwitchedQuantizer(new, next(iter(table.values())).scale)
            self.twin.replace_quantizer(name, self.switched[name])
        for layer in self.layers:
            self.formats[layer.id] = Formats(
                _parsed(given[self.weight_edges[layer.id]]), _parsed(given[layer.edges[0]])
            )
        if not self.switched:
            raise TrainingError(
                f"no layer of {self.graph.name!r} but the ends has the widths "
                f"{', '.join(map(str, choices))}"
            )

    def _given(self, choices: Sequence[BitChoice]) -> dict[str, dict[str, FakeQuantize]]:
        """Return what quantizes each edge of the twin, by the format of what layers read of it."""
        # residual connections share what layers read, so that comes first
        names = sorted(
            (edge.id for edge in self.twin.edges), key=lambda name: name.endswith(RESIDUAL)
        )
        given: dict[str, dict[str, FakeQuantize]] = {name: {} for name in names}
        for choice in choices:
            twin = Twin(self._start(uniform_choices(self.layers, choice)).module)
            held = {edge.id: edge.format for edge in twin.edges}
            for name, quantizer in twin.quantizers.items():
                assert isinstance(quantizer, FakeQuantize)
                given[name].setdefault(held[name.removesuffix(RESIDUAL)], quantizer)
        return given

    def _put_norms_in(self, choices: Sequence[BitChoice]) -> None:
        """Give each constant of a normalization its numbers at each width."""
        weights = dict.fromkeys(choice.weight for choice in choices)
        activations = dict.fromkeys(choice.activation for choice in choices)
        pairs = (BitChoice(w, a) for w in weights for a in activations)
        keys = list(dict.fromkeys(map(self._key_of, pairs)))
        self._widest = keys[0]
        own = self.twin.constants
        self._norm_layers = self.twin.norm_layers
        self._numbers = {name: SwitchedNumbers(own[name], keys) for name in self._norm_layers}
        # within the twin, so that they are trained, moved and kept with it
        self.twin.add_module("norm_numbers", nn.ModuleList(self._numbers.values()))
        for name in self._norm_layers:
            own[name].requires_grad_(False)


def of_one_scale(given: FakeQuantize) -> FakeQuantize:
    """Return a quantizer of the same levels, whose one scale is the mean of the channels'."""
    return FakeQuantize(
        given.scale.mean().reshape(1), given.zero_point, int(given.qmin), int(given.qmax),
        axis=given.axis, multiplier=given.multiplier, groups=given.groups,
    )  # fmt: skip


def _parsed(names: Iterable[str]) -> tuple[Format, ...]:
    return tuple(map(formats.parse, names))
