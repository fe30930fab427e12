"""What is tuned: a kernel's spec under a key that is equal for kernels that take equally long."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tvmquant.errors import QuantizationError
from tvmquant.layers import quantizable_layers
from tvmquant.machine import Machine
from tvmquant.passes import pipeline
from tvmquant.schedules import families
from tvmquant.schedules.isa import DotProduct

if TYPE_CHECKING:
    from tvmquant.bit_choice import BitChoice
    from tvmquant.calibration import Calibration
    from tvmquant.graph import Graph
    from tvmquant.layers import Layer

# Decided when a layer is fused with what follows; a tiling that is good without it is good with it.
EPILOGUE_FIELDS = ("epilogue", "residual_dtype")


def encode(value: Any) -> Any:
    """Return a spec or tiling as JSON values.

    Fields that hold their default are left out, so that what was recorded keeps its meaning when a
    field with a default is added. Instructions are named; other dataclasses inside tell their type.

    Examples
    --------
    >>> from tvmquant.schedules.conv2d import Conv2DSpec
    >>> encode(Conv2DSpec(1, 8, 8, 16, 32, groups=2))
    {'batch': 1, 'height': 8, 'width': 8, 'channels': 16, 'outputs': 32, 'groups': 2}
    """
    if isinstance(value, DotProduct):
        return value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: getattr(value, field.name)
            for field in dataclasses.fields(value)
            if getattr(value, field.name) != field.default
        }
        return {name: _encode_inner(inner) for name, inner in fields.items()}
    return _encode_inner(value)


def _encode_inner(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_encode_inner(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, DotProduct):
        return {"type": type(value).__name__, **encode(value)}
    return encode(value) if isinstance(value, DotProduct) else value


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a spec or tiling."""
    return json.dumps(encode(value), sort_keys=True, separators=(",", ":"))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Workload:
    """A kernel to be tuned.

    Parameters
    ----------
    family : str
        `Family.name` of `tvmquant.schedules.families`.
    spec : dataclass
        Of the family; `Family.timing` of what a layer needs.
    """

    family: str
    spec: Any

    @classmethod
    def of(cls, family: str, spec: Any) -> Workload:
        """Return the workload of a layer's spec."""
        return cls(family, families.kernels(family).timing(spec))

    @cached_property
    def key(self) -> str:
        """Sixteen hexadecimal digits, equal in every process."""
        return _digest(self.family, canonical_json(self.spec))

    @cached_property
    def geometry(self) -> str:
        """The key of everything but the epilogue."""
        return geometry_of(self.family, encode(self.spec))

    def tilings(self, machine: Machine) -> dict[str, Any]:
        """Return every tiling by its `canonical_json`, the analytic default first."""
        found = families.kernels(self.family).tilings(self.spec, machine)
        return {canonical_json(tiling): tiling for tiling in found}


def geometry_of(family: str, spec: Mapping[str, Any]) -> str:
    """Return `Workload.geometry` of an encoded spec."""
    kept = {name: value for name, value in spec.items() if name not in EPILOGUE_FIELDS}
    return _digest(family, json.dumps(kept, sort_keys=True, separators=(",", ":")))


def workloads_of(graph: Graph, machine: Machine, batch: int = 1) -> dict[str, Workload]:
    """Return the workload of every layer of an integer graph, by the layer's id.

    Parameters
    ----------
    graph : Graph
        Level L2.
    machine : Machine
    batch : int
        As of `tvmquant.build`.

    Raises
    ------
    QuantizationError
        If the graph is of another level.
    """
    if graph.level != "L2":
        raise QuantizationError(f"expected an integer graph (L2), found level {graph.level}")
    found: dict[str, Workload] = {}

    def record(family: str, spec: Any, layer: str) -> None:
        found[layer] = Workload.of(family, spec)

    pipeline.lower(graph.module, machine, batch, record)
    return found


def workloads_by_choice(
    graph: Graph,
    calibration: Calibration,
    choices: Iterable[BitChoice],
    machine: Machine,
    batch: int = 1,
    **options: Any,
) -> dict[str, dict[str, Workload]]:
    """Return the workloads of every layer of a float graph under each bit choice it can take.

    Parameters
    ----------
    graph : Graph
        Level L0.
    calibration : Calibration
        Its ranges do not matter for speed.
    choices : iterable of BitChoice
    machine, batch
        As of `workloads_of`.
    **options
        Of `tvmquant.quantize`.

    Returns
    -------
    dict of layer id to dict of choice to Workload
        In execution order. A layer that shares its activation with one that cannot take a choice
        has no entry for it.
    """
    from tvmquant.quantization import quantize

    layers = quantizable_layers(graph)
    found: dict[str, dict[str, Workload]] = {layer.id: {} for layer in layers}
    for choice in choices:
        taken = _takers(layers, choice)
        if not taken:
            continue
        assigned = {layer: choice for layer in taken}
        quantized = quantize(graph, calibration, choices=assigned, **options)
        for layer, workload in workloads_of(quantized, machine, batch).items():
            if layer in assigned:
                found[layer][str(choice)] = workload
    return found


def _takers(layers: Iterable[Layer], choice: BitChoice) -> list[str]:
    """Return the layers that can take a choice together: tied layers read one activation."""
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.group, []).append(layer)
    able = {
        group
        for group, members in groups.items()
        if all(layer.reads(choice.activation) for layer in members)
    }
    return [layer.id for layer in layers if layer.group in able and layer.allows(choice)]
