"""Plans of bit widths: accuracy, latency, prediction and size of the same libraries.

For each network: uniform w8a8, w4a8 and w4a4, and the plans that the integer linear program finds
at 75, 50 and 25 % of the way from the narrowest to the widest of these, by latency, by size and by
bit operations (HAWQ-V3's high, medium and low). At the medium size also with other sensitivities.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import models as networks
from benchmarks.accuracy import TASKS, check_files, open_images
from benchmarks.rows import Row, RowMaker, machine_facts, target_rounding
from tvmquant.allocation import allocate
from tvmquant.allocation.costs import QUANTITIES, Costs
from tvmquant.bit_choice import W4A4, W4A8, W8A8, BitChoice
from tvmquant.errors import DataError
from tvmquant.layers import Layer, quantizable_layers, uniform_choices
from tvmquant.network_latency import NetworkLatency, measure_network
from tvmquant.progress import Stage

Plan = dict[str, BitChoice]

CHOICES = (W8A8, W4A8, W4A4)
LEVELS = (0.75, 0.5, 0.25)
METHODS = ("hessian", "fisher", "output", "random")
# The budget at which the methods are compared.
ABLATION = ("size", 0.5)
SENSITIVITY_IMAGES = 64
# Of timing, at least: what else the machine does comes and goes by the second.
SECONDS = 15.0
# Of networks with random weights only the latency means anything.
RANDOM_IMAGES = 8


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network and what its plans are chosen by.

    Attributes
    ----------
    name : str
    graph : Graph
    calibration : Calibration
    layers : tuple of Layer
    latency : NetworkLatency
    perturbations : dict of str to (dict of str to (dict of str to float))
        By method, layer and choice.
    """

    name: str
    graph: Any
    calibration: Any
    layers: tuple[Layer, ...]
    latency: NetworkLatency
    perturbations: dict[str, Mapping[str, Mapping[str, float]]]


def run(
    models: Sequence[str],
    *,
    data: Path,
    stage: Stage,
    target: str,
    threads: int,
    repeats: int,
    limit: int | None,
    image_size: int | None,
) -> list[Row]:
    """Choose, build, time and evaluate the plans of each network.

    Parameters
    ----------
    models : sequence of str
        Of `benchmarks.accuracy.TASKS`, or of the random networks.
    data : Path
        Folder with ``models/`` and ``data/``.
    stage : callable
        Called with the name of each stage; see `tvmquant.progress.Stage`.
    target, threads
        As of `tvmquant.build`.
    repeats : int
        Timed runs of each library.
    limit : int, optional
        Evaluate at most so many images, spread evenly over all.
    image_size : int, optional
        Height and width of random networks.

    Returns
    -------
    list of Row
        Configs ``w8a8``, ``w4a8``, ``w4a4``, ``ilp-QUANTITY-LEVEL`` and ``ilp-METHOD-...``; metrics
        ``top1`` (trained networks), ``latency_ms``, ``predicted_ms``, ``prediction_error``,
        ``relative_prediction_error`` (of the ratio to w8a8, in which a machine that got slower or
        faster since the layers were timed does not show), ``speedup`` over w8a8, ``size_bytes`` and
        ``bops`` of the layers, ``library_bytes``. With a key ``layer``: ``speedup`` of that layer's
        kernel over w8a8, in the network.

    Raises
    ------
    DataError
        When a network is unknown, or a file is not there.
    """
    known = [*TASKS, *networks.names()]
    if unknown := [name for name in models if name not in known]:
        raise DataError(f"--models: {unknown[0]!r} is unknown; expected some of {', '.join(known)}")
    for name in models:
        if name in TASKS:
            check_files(data, TASKS[name])
    make = RowMaker("allocation", threads, machine_facts(target))
    rows: list[Row] = []
    for name in models:
        with tempfile.TemporaryDirectory(prefix="tvmquant-") as scratch:
            subject = _subject(name, data, Path(scratch), stage, target, threads, image_size)
            plans = _plans(subject)
            rows += _layer_rows(make, subject)
            rows += _measure(
                make, subject, plans, data, Path(scratch), stage, target, threads, repeats, limit
            )
    return rows


def _subject(
    name: str, data: Path, scratch: Path, stage: Stage, target: str, threads: int,
    image_size: int | None,
) -> Subject:  # fmt: skip
    import tvmquant

    if name in TASKS:
        task = TASKS[name]
        graph = tvmquant.load_onnx(data / "models" / task.model)
        images: Any = open_images(data, task, task.calibration, 16)
    else:
        onnx = networks.export(name, scratch / f"{name}.onnx", image_size=image_size)
        graph = tvmquant.load_onnx(onnx)
        shape = networks.input_shape(name, image_size)
        images = networks.synthetic_images(RANDOM_IMAGES, shape, seed=1)
    with stage(f"{name}: calibrate") as progress:
        calibration = tvmquant.calibrate(graph, images, progress=progress)
    rounding = target_rounding(target)
    perturbations = {}
    for method in METHODS if name in TASKS else ("random",):
        with stage(f"{name}: sensitivity by {method}") as progress:
            few = images if name not in TASKS else images.subset(
                step=max(1, len(images) // SENSITIVITY_IMAGES), limit=SENSITIVITY_IMAGES
            )  # fmt: skip
            perturbations[method] = tvmquant.estimate_sensitivity(
                graph,
                few,
                calibration,
                method=method,
                choices=CHOICES,
                progress=progress,
                **rounding,
            ).perturbation
    with stage(f"{name}: latency of layers") as progress:
        latency = measure_network(
            graph,
            calibration,
            choices=CHOICES,
            target=target,
            threads=threads,
            quantize_options=rounding,
            progress=progress,
        )
    layers = quantizable_layers(graph)
    return Subject(name, graph, calibration, layers, latency, perturbations)


def _plans(subject: Subject) -> dict[str, Plan]:
    """Return the plans by config."""
    costs = Costs(subject.latency.layers, subject.latency.fixed_ms)
    plans = {str(choice): uniform_choices(subject.layers, choice) for choice in CHOICES}
    first = next(iter(subject.perturbations))

    def solve(quantity: str, level: float, method: str) -> Plan:
        low, high = (
            costs.total(quantity, subject.layers, plans[str(choice)]) for choice in (W4A4, W8A8)
        )
        budget = f"{(low + level * (high - low)) / high!r}x"
        found = allocate(
            subject.layers,
            subject.perturbations[method],
            latency=subject.latency.layers,
            fixed_latency_ms=subject.latency.fixed_ms,
            choices=CHOICES,
            **{{"latency": "latency_budget"}.get(quantity, quantity): budget},  # type: ignore[arg-type]
        )
        return found.choices

    for quantity in QUANTITIES:
        for level in LEVELS:
            plans[f"ilp-{quantity}-{level:g}"] = solve(quantity, level, first)
    quantity, level = ABLATION
    for method in subject.perturbations:
        if method != first:
            plans[f"ilp-{method}-{quantity}-{level:g}"] = solve(quantity, level, method)
    return plans


def _layer_rows(make: RowMaker, subject: Subject) -> Iterator[Row]:
    for layer, times in subject.latency.layers.items():
        for choice, milliseconds in times.items():
            if choice != str(W8A8):
                ratio = times[str(W8A8)] / milliseconds
                yield make(subject.name, choice, "speedup", ratio, "x", layer=layer)


def _measure(
    make: RowMaker, subject: Subject, plans: Mapping[str, Plan], data: Path, scratch: Path,
    stage: Stage, target: str, threads: int, repeats: int, limit: int | None,
) -> Iterator[Row]:  # fmt: skip
    """Build every plan once, time all libraries by turns, then evaluate each."""
    import tvmquant
    from tvmquant.benchmark import random_inputs, runner

    rounding = target_rounding(target)
    distinct: dict[str, str] = {}
    for config, plan in plans.items():
        same = next((other for other in distinct if plans[other] == plan), config)
        distinct[config] = same
    libraries: dict[str, Any] = {}
    manifests: dict[str, Any] = {}
    built = [config for config, same in distinct.items() if config == same]
    with stage(f"{subject.name}: build {len(built)} libraries") as progress:
        for index, config in enumerate(built):
            quantized = tvmquant.quantize(
                subject.graph, subject.calibration, choices=plans[config], **rounding
            )
            manifests[config] = tvmquant.build(
                quantized, target=target, out=scratch / config, threads=threads
            )
            libraries[config] = tvmquant.load(scratch / config)
            progress(index + 1, len(built))
    with stage(f"{subject.name}: measure") as progress:
        inputs = random_inputs(libraries[built[0]].inputs)
        runners = {config: runner(library, inputs) for config, library in libraries.items()}
        first = tvmquant.compare(runners, repeats=3)
        turn = 1e-3 * sum(latency.min_ms for latency in first.values())
        latencies = tvmquant.compare(
            runners, repeats=max(repeats, math.ceil(SECONDS / turn)), progress=progress
        )
    accuracies = _accuracies(subject, libraries, data, stage, limit)
    if accuracies:
        yield make(subject.name, "float", "top1", accuracies.pop("float"), "%")
    costs = Costs(subject.latency.layers, subject.latency.fixed_ms)
    reference = latencies[str(W8A8)].median_ms
    for config, plan in plans.items():
        same = distinct[config]
        measured = latencies[same].median_ms
        predicted = subject.latency.predict(plan)
        facts = {"same_as": same} if same != config else {}
        if accuracies:
            yield make(subject.name, config, "top1", accuracies[same], "%", **facts)
        yield make(subject.name, config, "latency_ms", measured, "ms", **facts)
        yield make(subject.name, config, "predicted_ms", predicted, "ms", **facts)
        error = 100.0 * (predicted / measured - 1.0)
        yield make(subject.name, config, "prediction_error", error, "%", **facts)
        share = predicted / subject.latency.predict(plans[str(W8A8)])
        error = 100.0 * (share * reference / measured - 1.0)
        yield make(subject.name, config, "relative_prediction_error", error, "%", **facts)
        yield make(subject.name, config, "speedup", reference / measured, "x", **facts)
        for quantity, unit in (("size", "bytes"), ("bops", "")):
            total = costs.total(quantity, subject.layers, plan)
            metric = f"{quantity}_bytes" if quantity == "size" else quantity
            yield make(subject.name, config, metric, total, unit, **facts)
        size = manifests[same].library["bytes"]
        yield make(subject.name, config, "library_bytes", size, "bytes", **facts)


def _accuracies(
    subject: Subject, libraries: Mapping[str, Any], data: Path, stage: Stage, limit: int | None
) -> dict[str, float]:
    """Return the top-1 accuracy of every library and of the float model, in percent."""
    import tvmquant

    if subject.name not in TASKS:
        return {}
    task = TASKS[subject.name]
    held_out = open_images(data, task, task.evaluation, 16)
    if limit is not None:
        held_out = held_out.subset(step=max(1, len(held_out) // limit), limit=limit)
    found = {}
    for config, library in libraries.items():
        first = not found
        with stage(f"{subject.name}: evaluate {config}") as progress:
            result = tvmquant.evaluate(
                library, held_out, reference=subject.graph if first else None, progress=progress
            )
        if first:
            found["float"] = result.reference_top1
        found[config] = result.top1
    return found
