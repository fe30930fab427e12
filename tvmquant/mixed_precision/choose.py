"""Choose the bit widths of a network: sensitivity, latency on the target, integer linear program.

1. Sensitivity of every layer to every choice, on the torch twin (`tvmquant.sensitivity`).
2. Latency of every layer under every choice, inside whole networks (`tvmquant.network_latency`).
3. The plan of least perturbation within the budgets (`tvmquant.allocation`).

The first two are kept as JSON files, so that other budgets cost only the third.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmquant.allocation import Allocation, Budget, Plan, allocate, pareto
from tvmquant.allocation.costs import Costs
from tvmquant.bit_choice import W8A8, BitChoice
from tvmquant.devices.tracker import Tracker
from tvmquant.layers import Layer, quantizable_layers, uniform_choices, with_wide_activations
from tvmquant.machine import Machine
from tvmquant.mixed_precision.record import LayerRecord, MixedPrecisionRecord, PlanPoint
from tvmquant.mixed_precision.wishes import Wishes
from tvmquant.network_latency import NetworkLatency, measure_network
from tvmquant.progress import Progress, Stage
from tvmquant.sensitivity import Sensitivity, estimate_sensitivity
from tvmquant.sensitivity.methods import check_method
from tvmquant.stage_cache import taken_up

if TYPE_CHECKING:
    from tvmquant.calibration import Calibration
    from tvmquant.data import Dataset
    from tvmquant.graph import Graph
    from tvmquant.sensitivity.quantizers import Rounder
    from tvmquant.training import Recipe

# Images that sensitivity is estimated with; traces converge within these.
SENSITIVITY_SAMPLES = 64
# Options of `tvmquant.quantize` that sensitivity depends on.
ROUNDING = ("activation_scheme", "weight_method", "bound_pairs")
FRONTIER_POINTS = 16


@dataclass(frozen=True)
class Setup:
    """The network, its data and its machine: what a plan is chosen for.

    Parameters
    ----------
    graph : Graph
        Level L0.
    calibration : Calibration
    data : Dataset
        For the sensitivity; labels are not used.
    machine : Machine
    batch : int
    tilings : callable, optional
        As of `tvmquant.build`.
    tuning_state : str
        What identifies the tilings, for the cache; empty for the analytic ones.
    quantize_options : mapping
        Further options of `tvmquant.quantize`.
    tracker : Tracker, optional
        Whose device measures latencies; default: this machine does.
    reconstruction : Recipe, optional
        Sensitivity is that of weights rounded anew, as of `training.reconstruct.alone`.
    """

    graph: Graph
    calibration: Calibration
    data: Dataset
    machine: Machine
    batch: int = 1
    tilings: Any = None
    tuning_state: str = ""
    quantize_options: Mapping[str, Any] = field(default_factory=dict)
    tracker: Tracker | None = None
    reconstruction: Recipe | None = None


def measure_sensitivity(
    setup: Setup, wishes: Wishes, cache: Path, progress: Progress | None = None
) -> Sensitivity:
    """Estimate, or read from ``cache``, the perturbation of every layer under every choice.

    Raises
    ------
    SensitivityError
        When it is given, and of another model or without a choice that is wanted; or as of
        `tvmquant.sensitivity.estimate_sensitivity`.
    """
    if wishes.given is not None:
        wishes.given.check(setup.graph.fingerprint(), wishes.measured)
        return wishes.given
    length = len(setup.data) if setup.data.has_length else SENSITIVITY_SAMPLES
    step = max(1, length // SENSITIVITY_SAMPLES)
    # What `uniform_choices` gives layers that must keep 8-bit activations is compared too.
    choices = [c for choice in wishes.measured for c in (choice, with_wide_activations(choice))]
    return estimate_sensitivity(
        setup.graph,
        setup.data.subset(step=step, limit=SENSITIVITY_SAMPLES),
        setup.calibration,
        method=wishes.sensitivity,
        choices=list(dict.fromkeys(choices)),
        cache=cache,
        progress=progress,
        rounder=_rounder(setup, wishes, cache),
        **{name: value for name, value in setup.quantize_options.items() if name in ROUNDING},
    )


def _rounder(setup: Setup, wishes: Wishes, cache: Path) -> Rounder | None:
    """Return what rounds weights anew, but those of layers that will have 8 bits in any case."""
    if setup.reconstruction is None:
        return None
    from tvmquant.training.reconstruct import LayerRounder, alone

    ends = [layer.id for layer in quantizable_layers(setup.graph) if layer.position]
    taken = {**(dict.fromkeys(ends, W8A8) if wishes.pin_ends else {}), **wishes.pinned}
    leaves = [name for name, choice in taken.items() if choice == W8A8]
    return LayerRounder(setup.graph, setup.data, alone(setup.reconstruction), cache, leaves)


def measure_latency(
    setup: Setup, wishes: Wishes, cache: Path, progress: Progress | None = None
) -> NetworkLatency:
    """Measure, or read from ``cache``, the latency of every layer under every choice."""
    from tvmquant.tuning.record import Header

    pin_ends = _ends_are_w8a8(quantizable_layers(setup.graph), wishes)
    follows_from = [
        # versions, processor and options of the target, which a file may outlive
        Header.of(setup.machine, setup.tracker.name if setup.tracker else "").model_dump_json(),
        setup.graph.fingerprint(), setup.batch, setup.tuning_state,
        sorted(map(str, wishes.measured)), pin_ends, setup.quantize_options,
    ]  # fmt: skip

    def measure() -> NetworkLatency:
        return measure_network(
            setup.graph,
            setup.calibration,
            choices=wishes.measured,
            target=setup.machine,
            batch=setup.batch,
            tilings=setup.tilings,
            pin_ends=pin_ends,
            quantize_options=setup.quantize_options,
            tracker=setup.tracker,
            progress=progress,
        )

    return taken_up(cache, "latency", NetworkLatency, follows_from, measure)[0]


def _ends_are_w8a8(layers: Sequence[Layer], wishes: Wishes) -> bool:
    """Whether the first and the last layer can take nothing else."""
    ends = [layer.id for layer in layers if layer.position]
    return wishes.pin_ends and all(wishes.pinned.get(end, W8A8) == W8A8 for end in ends)


def check_wishes(layers: Sequence[Layer], wishes: Wishes) -> None:
    """Refuse what no measurement can make possible, before the measurements.

    Raises
    ------
    AllocationError
        When a pin names no layer, has no kernel or contradicts that of a tied layer, no plan keeps
        the budgets of size and bit operations, or a budget is not understood.
    SensitivityError
        When there is no such method.
    """
    if wishes.given is None:
        check_method(wishes.sensitivity)
    if wishes.latency is not None:
        Budget.parse(wishes.latency, "latency")
    imported = [layer.imported for layer in layers if layer.imported is not None]
    names = {str(choice): 0.0 for choice in (*wishes.measured, *imported)}
    allocate(
        layers,
        {layer.id: names for layer in layers},
        size=wishes.size,
        bops=wishes.bops,
        pinned=wishes.pinned,
        choices=wishes.choices,
        pin_ends=wishes.pin_ends,
    )


@dataclass(frozen=True)
class Chosen:
    """A plan and everything that led to it.

    Parameters
    ----------
    plan : Plan
    allocation : Allocation
    layers : tuple of Layer
    sensitivity : Sensitivity
    latency : NetworkLatency
    wishes : Wishes
    """

    plan: Plan
    allocation: Allocation
    layers: tuple[Layer, ...]
    sensitivity: Sensitivity
    latency: NetworkLatency
    wishes: Wishes


def choose_plan(setup: Setup, wishes: Wishes, cache: Path, stage: Stage) -> Chosen:
    """Choose the plan of least perturbation within the budgets.

    Parameters
    ----------
    setup : Setup
    wishes : Wishes
    cache : Path
        Folder for sensitivities and latencies, which a later call takes from there.
    stage : callable
        Opens a stage by its name, as of `tvmquant.compile_onnx`: ``sensitivity``, ``latency``,
        ``allocate``.

    Raises
    ------
    AllocationError
        When no plan keeps the budgets; names the limit and the least value that can be reached.
    TVMQuantError
        What the stages raise.
    """
    layers = quantizable_layers(setup.graph)
    with stage("sensitivity") as progress:
        sensitivity = measure_sensitivity(setup, wishes, cache, progress)
    with stage("latency") as progress:
        latency = measure_latency(setup, wishes, cache, progress)
    with stage("allocate"):
        allocation = allocate(
            layers,
            sensitivity.perturbation,
            latency=latency.layers,
            fixed_latency_ms=latency.fixed_ms,
            size=wishes.size,
            bops=wishes.bops,
            latency_budget=wishes.latency,
            pinned=wishes.pinned,
            choices=wishes.choices,
            excluded=sensitivity.excluded,
            pin_ends=wishes.pin_ends,
        )
    plan = Plan.from_allocation(
        allocation,
        model=setup.graph.name,
        fingerprint=setup.graph.fingerprint(),
        target=latency.target,
        threads=latency.threads,
        sensitivity=wishes.sensitivity,
        budgets=wishes.budgets,
        reconstruction=_fields(setup),
    )
    return Chosen(plan, allocation, layers, sensitivity, latency, wishes)


def _fields(setup: Setup) -> dict[str, Any] | None:
    """Return what a plan says of how weights are rounded anew."""
    if setup.reconstruction is None:
        return None
    from tvmquant.training.reconstruct import alone

    return alone(setup.reconstruction).model_dump(mode="json", exclude_defaults=True)


def frontier(chosen: Chosen, points: int = FRONTIER_POINTS) -> list[Allocation]:
    """Return the plans of least perturbation for latencies between the extremes."""
    wishes = chosen.wishes
    return pareto(
        chosen.layers,
        chosen.sensitivity.perturbation,
        latency=chosen.latency.layers,
        fixed_latency_ms=chosen.latency.fixed_ms,
        pinned=wishes.pinned,
        choices=wishes.choices,
        excluded=chosen.sensitivity.excluded,
        pin_ends=wishes.pin_ends,
        points=points,
    )


def make_record(chosen: Chosen, measured_ms: float | None) -> MixedPrecisionRecord:
    """Return what is kept beside the library.

    Parameters
    ----------
    chosen : Chosen
    measured_ms : float, optional
        Latency of the library that was built from the plan.
    """
    latency, omega = chosen.latency, chosen.sensitivity.perturbation
    costs = Costs(latency.layers, latency.fixed_ms)

    def point(name: str, plan: Mapping[str, BitChoice], measured: float | None) -> PlanPoint:
        return PlanPoint(
            name=name,
            size_bytes=round(costs.total("size", chosen.layers, plan)),
            bops=round(costs.total("bops", chosen.layers, plan)),
            perturbation=sum(omega[layer][str(choice)] for layer, choice in plan.items()),
            predicted_ms=costs.total("latency", chosen.layers, plan),
            measured_ms=measured,
        )

    plan = chosen.plan.choices
    pin_ends = _ends_are_w8a8(chosen.layers, chosen.wishes)
    return MixedPrecisionRecord(
        model=chosen.plan.fingerprint,
        target=latency.target,
        threads=latency.threads,
        device=latency.device,
        sensitivity=chosen.wishes.sensitivity,
        budgets=chosen.wishes.budgets,
        fixed_ms=latency.fixed_ms,
        layers=[
            LayerRecord(
                id=layer.id, op=layer.op, macs=layer.macs, weights=layer.weights,
                outputs=layer.outputs, group=layer.group, position=layer.position,
                choice=str(plan[layer.id]), reason=chosen.allocation.reasons[layer.id],
                perturbation=dict(omega[layer.id]), milliseconds=latency.layers[layer.id],
            )
            for layer in chosen.layers
        ],
        chosen=point("chosen", plan, measured_ms),
        uniform=[
            point(
                name,
                uniform_choices(chosen.layers, BitChoice.parse(name), pin_ends=pin_ends),
                measured,
            )
            for name, measured in latency.networks_ms.items()
        ],
        frontier=[point("frontier", found.choices, None) for found in frontier(chosen)],
    )  # fmt: skip
