"""The layers whose bit widths can be chosen, and which of them read the same activation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import tvm
from tvm import relax

from tvmquant import formats
from tvmquant.bit_choice import W8A8, BitChoice
from tvmquant.errors import QuantizationError
from tvmquant.formats import (
    GROUP_SIZES,
    INT8,
    MOST_BITS,
    UBINARY,
    UINT8,
    WIDTHS,
    Format,
    Uniform,
)
from tvmquant.ir import dynamic_ops as dyn
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of, origins, span_name, used_vars
from tvmquant.ir.tensor_types import integers
from tvmquant.levels import annotated
from tvmquant.passes.elementwise import CAST
from tvmquant.passes.region_operators import is_mover
from tvmquant.schedules.families import (
    CONV2D,
    CONV2D_TRANSPOSE,
    DENSE,
    Contraction,
    family_of,
    scales_groups,
)

if TYPE_CHECKING:
    from tvmquant.graph import Graph

# Whether kernels can scale groups of weights is asked with the smallest ones.
_GROUPED: Final = BitChoice(Uniform(4, signed=True, group=GROUP_SIZES[0]))


@dataclass(frozen=True)
class Layer:
    """A convolution or dense layer of an annotated graph.

    Parameters
    ----------
    id : str
        Name of the ONNX node.
    op : str
        ``conv2d``, ``depthwise_conv2d``, ``conv2d_transpose`` or ``dense``.
    macs : int
        Multiply-accumulates for one item of a batch.
    weights : int
        Number of weight values.
    outputs : int
        Output channels.
    edges : tuple of str
        Ids of the fake_quants whose integers it reads; several behind a concat.
    group : str
        Layers of one group read the same integers, or integers of one scale (the inputs of a
        concat), so they share their activation width.
    position : str
        ``first`` (reads the network's input), ``last`` (no further layer follows) or empty.
    given : Format, optional
        Of the activation, where the network is fed these integers.
    groupable : bool
        Whether its kernels can scale groups of weights: these follow whole rows of the window,
        which dilation or grouped channels cut up.
    imported : BitChoice, optional
        Where the weight's scale came with the model: the only choice.
    """

    id: str
    op: str
    macs: int
    weights: int
    outputs: int
    edges: tuple[str, ...]
    group: str
    position: str
    given: Format | None = None
    groupable: bool = True
    imported: BitChoice | None = None

    def allows(self, choice: BitChoice) -> bool:
        """Whether there is a kernel for a choice, with any group size that it asks for."""
        if self.imported is not None:
            return choice == self.imported
        return self.reads(choice.activation) and (self.groupable or not choice.weight.group)

    @property
    def usual(self) -> BitChoice:
        """The choice that it gets where none is made."""
        return self.imported or BitChoice(INT8, self.given or UINT8)

    def reads(self, activation: Format) -> bool:
        """Whether it can read activations of a format."""
        return self.given in (None, activation)

    @property
    def expected(self) -> str:
        """What `allows` allows, in words."""
        if self.imported is not None:
            return (
                f"{self.imported}, as it is in the model (of a quantized model, --requantize "
                "chooses anew)"
            )
        widths = f"1 to {WIDTHS[-1]} bits"
        groups = "" if self.groupable else ", without groups"
        read = (
            f"activations in the model's own format {self.given}"
            if self.given
            else f"activations of {widths}"
        )
        return f"weights of {widths}{groups}, and {read}"


def quantizable_layers(graph: Graph) -> tuple[Layer, ...]:
    """List the layers of a graph in execution order.

    Parameters
    ----------
    graph : Graph
        Level L0 or L1.

    Raises
    ------
    QuantizationError
        When the graph is of another level.
    """
    if graph.level not in ("L0", "L1"):
        raise QuantizationError(f"expected a float or annotated graph, found level {graph.level}")
    return (annotated(graph) if graph.level == "L0" else graph).once(_layers)


def uniform_choices(
    layers: Sequence[Layer], choice: BitChoice, *, pin_ends: bool = True
) -> dict[str, BitChoice]:
    """Give every layer a choice, or what is nearest to it.

    Layers without a kernel for the choice, and layers tied to such one by their activation, take
    8-bit activations, with weights of the choice where there is a kernel. Layers that the model
    gives a choice keep it.

    Parameters
    ----------
    layers : sequence of Layer
    choice : BitChoice
    pin_ends : bool
        Give the first and the last layer w8a8.
    """
    pinned = {layer.id for layer in layers if pin_ends and layer.position}
    wide = {
        layer.group
        for layer in layers
        if choice.activation != W8A8.activation and (layer.id in pinned or not layer.allows(choice))
    }
    result = {}
    for layer in layers:
        wanted = with_wide_activations(choice) if layer.group in wide else choice
        possible = layer.id not in pinned and layer.allows(wanted)
        result[layer.id] = layer.imported or (wanted if possible else W8A8)
    return result


def with_wide_activations(choice: BitChoice) -> BitChoice:
    """Return the choice with the same weights and 8-bit activations."""
    return BitChoice(choice.weight, W8A8.activation)


def is_quantized(graph: Graph) -> bool:
    """Whether a float graph (L0) says how activations are rounded.

    It brings scales, as a QDQ model does, or asks for ranges that are found at run time. Signs and
    weights of a few values, which a float network may hold, are none.
    """

    def rounds(value: relax.Expr) -> bool:
        if not qop.is_call(value, qop.FAKE_QUANT):
            return qop.is_call(value, dyn.DYNAMIC_QUANT)
        attrs = qop.attributes(value)
        return bool(attrs["role"] != qop.WEIGHT and attrs["format"] != UBINARY.name)

    return any(rounds(value) for _, value in bindings_of(graph.main))


def _layers(graph: Graph) -> tuple[Layer, ...]:
    return tuple(_Reader(graph.module).layers())


class _Reader:
    def __init__(self, module: tvm.IRModule) -> None:
        self.function = module["main"]
        self.values = dict(bindings_of(self.function))
        self.groups = _Groups()

    def layers(self) -> Iterator[Layer]:
        found = [
            (call, edges)
            for _, call in bindings_of(self.function)
            if qop.is_call(call, *qop.FLOAT_CONTRACTIONS) and self._has_quantized_weight(call)
            if (edges := self._edges(call.args[0]))
            and all(edge["format"].bits <= MOST_BITS for edge in edges)
        ]
        for _, edges in found:
            self.groups.unite(edge["id"] for edge in edges)
        for value in self.values.values():
            if qop.is_call(value, qop.FAKE_QUANT):
                attrs = qop.attributes(value)
                if attrs["group"]:
                    self.groups.unite([f"group {attrs['group']}", attrs["id"]])
        followed = self._followed({span_name(call) for call, _ in found})
        names: dict[str, str] = {}
        for call, edges in found:
            ids = tuple(dict.fromkeys(edge["id"] for edge in edges))
            root = self.groups.root(ids[0])
            first = any(self._reads_input(edge["var"]) for edge in edges)
            last = span_name(call) not in followed
            given = next((edge["format"] for edge in edges if edge["fixed"]), None)
            yield self._layer(
                call,
                ids,
                given,
                names.setdefault(root, ids[0]),
                "first" if first else "last" if last else "",
            )

    def _layer(
        self,
        call: relax.Call,
        edges: tuple[str, ...],
        given: Format | None,
        group: str,
        position: str,
    ) -> Layer:
        contraction = contraction_of(call)
        name = span_name(call)
        # for any machine: the graph is quantized before one is chosen
        family = family_of(contraction, W8A8, None, name)
        size = math.prod(int(v) for v in call.args[1].ty.shape.values)
        weight = qop.attributes(self.values[call.args[1]])
        imported = None
        if weight.get("fixed"):
            imported = BitChoice(formats.parse(weight["format"]), given or UINT8)
        return Layer(
            name, family.operation, contraction.macs, size, contraction.outputs, edges, group,
            position, given, scales_groups(contraction, _GROUPED, None), imported,
        )  # fmt: skip

    def _has_quantized_weight(self, call: relax.Call) -> bool:
        weight = self.values.get(call.args[1])
        return qop.is_call(weight, qop.FAKE_QUANT) and qop.attributes(weight)["role"] == qop.WEIGHT

    def _edges(self, expr: relax.Expr) -> list[dict[str, Any]]:
        """Return id and variable of the fake_quants whose integers ``expr`` holds."""

        def sources(expr: relax.Expr) -> list[relax.Expr] | None:
            value = self.values.get(expr)
            moves = isinstance(value, relax.Call) and is_mover(value)
            moves = moves or isinstance(value, relax.Var | relax.TupleGetItem)
            return used_vars(value) if moves else None

        quants = [self.values.get(origin) for origin in origins(expr, sources)]
        return [
            {
                "id": attrs["id"],
                "var": value.args[0],
                "fixed": bool(attrs["fixed"]),
                "format": formats.parse(attrs["format"]),
            }
            for value in quants
            if qop.is_call(value, qop.FAKE_QUANT)
            for attrs in [qop.attributes(value)]
        ]

    def _reads_input(self, var: relax.Expr) -> bool:
        def sources(expr: relax.Expr) -> list[relax.Expr] | None:
            value = self.values.get(expr)
            moves = isinstance(value, relax.Call) and (is_mover(value) or qop.is_call(value, CAST))
            return used_vars(value) if moves else None

        parameters = set(self.function.params)
        return any(origin in parameters for origin in origins(var, sources))

    def _followed(self, names: set[str]) -> set[str]:
        """Return the layers whose result reaches another layer."""
        upstream: dict[relax.Var, frozenset[str]] = {}
        followed: set[str] = set()
        for var, value in bindings_of(self.function):
            before = frozenset().union(*(upstream.get(v, frozenset()) for v in used_vars(value)))
            name = span_name(value)
            if qop.is_call(value, *qop.FLOAT_CONTRACTIONS) and name in names:
                followed |= before
                before = frozenset({name})  # what lies further up is followed by this one
            upstream[var] = before
        return followed


def contraction_of(call: relax.Call) -> Contraction:
    """Return what a float operator (L0 or L1, channels first) contracts, of one item of a batch."""
    weight = [int(v) for v in call.args[1].ty.shape.values]
    extents = [int(v) for v in call.args[0].ty.shape.values[1:]]
    if qop.is_call(call, "relax.matmul"):
        rows = [int(v) for v in call.ty.shape.values[1:-1]]
        return Contraction(DENSE, math.prod(rows), 1, 1, weight[-2], weight[-1])
    a = call.attrs
    channels, height, width = extents
    groups, outputs = int(a.groups), weight[0]
    transposed = qop.is_call(call, "relax.nn.conv2d_transpose")
    if transposed:
        outputs = weight[1] * groups
    return Contraction(
        CONV2D_TRANSPOSE if transposed else CONV2D, 1, height, width, channels, outputs,
        (weight[2], weight[3]), integers(a.strides), integers(a.padding), integers(a.dilation),
        integers(a.output_padding) if transposed else (0, 0), groups,
    )  # fmt: skip


class _Groups:
    """Disjoint sets of names."""

    def __init__(self) -> None:
        self.parents: dict[str, str] = {}

    def root(self, name: str) -> str:
        while name in self.parents:
            name = self.parents[name]
        return name

    def unite(self, names: Iterable[str]) -> None:
        roots = [self.root(name) for name in names]
        for other in roots[1:]:
            if self.root(other) != self.root(roots[0]):
                self.parents[self.root(other)] = self.root(roots[0])
