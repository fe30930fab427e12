"""From an ONNX file and data to a built library, in stages that a second run takes up again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmquant.bit_choice import W8A8, BitChoice
from tvmquant.data import Dataset, Preprocess, open_data
from tvmquant.data.preprocess import PreprocessLike
from tvmquant.errors import AllocationError, ArtifactError, DataError
from tvmquant.progress import Clock, Progress, Stage, silent_stage

if TYPE_CHECKING:
    import tvm

    from tvmquant.allocation import Plan
    from tvmquant.calibration import Calibration
    from tvmquant.deploy.manifest import Manifest
    from tvmquant.graph import Graph
    from tvmquant.mixed_precision import MixedPrecisionRecord, Wishes
    from tvmquant.mixed_precision.choose import Chosen
    from tvmquant.output_quality import OutputQuality
    from tvmquant.tuning import Database


PLAN_NAME = "plan.json"
# More images hardly move the ranges, which are extremes or histograms over every pixel of them.
DEFAULT_SAMPLES = 512
# Items that the finished library and the float model are compared on.
COMPARED = 8


@dataclasses.dataclass(frozen=True)
class Compilation:
    """What `compile_onnx` did.

    Attributes
    ----------
    manifest : Manifest
        Of the built library.
    seconds : dict of str to float
        Duration of each stage, in order.
    calibration_cached : bool
        Whether the ranges were those of an earlier run.
    up_to_date : bool
        Whether the library was there already, built from the same model, data and settings for the
        same processor by the same versions.
    record : MixedPrecisionRecord, optional
        Of a plan that was chosen: predicted and measured latency, and why.
    plan : Plan, optional
        The bit widths, chosen or given; None where every layer has 8 bits.
    untuned : tuple of str
        Layers of which the table of measurements has none, so that they took the analytic tiling;
        empty where the library was there already.
    outputs : tuple of OutputQuality
        How close each output, and each part of one that joins several, is to the float model's, on
        a few of the calibration items; empty where the data can be read only once, or the library
        is for another processor.
    """

    manifest: Manifest
    seconds: dict[str, float]
    calibration_cached: bool = False
    up_to_date: bool = False
    record: MixedPrecisionRecord | None = None
    plan: Plan | None = None
    untuned: tuple[str, ...] = ()
    outputs: tuple[OutputQuality, ...] = ()


def compile_onnx(
    path: str | os.PathLike[str],
    data: Any,
    *,
    out: str | os.PathLike[str],
    preprocess: PreprocessLike = None,
    select: str | Mapping[str, Any] | None = None,
    samples: int | None = DEFAULT_SAMPLES,
    calibration_method: str | None = None,
    percentile: float | None = None,
    activation_scheme: str | None = None,
    weight_method: str | None = None,
    bound_pairs: bool | None = None,
    wishes: Wishes | None = None,
    plan: str | os.PathLike[str] | None = None,
    table: str | os.PathLike[str] | None = None,
    tune_seconds: float | None = None,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
    target: str = "native",
    threads: int | None = None,
    batch: int = 1,
    strict: bool = False,
    force: bool = False,
    stage: Stage = silent_stage,
) -> Compilation:
    """Compile an ONNX model into an integer-only library, and compare that with the float model.

    Parameters
    ----------
    path : path
        The ONNX file.
    data : path, array or iterable
        What `open_data` reads; the images to calibrate with.
    out : path
        Folder of the library. The calibration is kept there too, as ``calibration-KEY.json``, and
        used again by a later run with the same model, data and method.
    preprocess, select
        As of `open_data`. The recipe is written into the manifest.
    samples : int, optional
        Calibrate with at most so many items, spread evenly over the selected ones; None: with all.
    calibration_method, percentile
        As of `calibrate`; None for its default. A percentile alone selects that method.
    activation_scheme, weight_method, bound_pairs, strict
        As of `quantize`; None for its default.
    wishes : Wishes, optional
        Choose bit widths for these budgets (`tvmquant.mixed_precision`). The plan is kept in the
        folder as ``plan.json``, why as ``mixed-precision.json``.
    plan : path, optional
        Take the bit widths from this ``plan.json`` instead.
    table : path, optional
        Folder of measurements (`tvmquant.tune`). Each kernel takes its fastest tiling, but the
        analytic one where that is slower by 3 % at most.
    tune_seconds : float, optional
        First tune for so long, into `table`; by default into a folder ``table`` in `out`.
    input_shapes
        As of `load_onnx`.
    target, threads, batch, force
        As of `build`.
    stage : callable
        Called with the name of each stage as it begins; a context manager that is left when it
        ends and yields a callable (done, total).

    Raises
    ------
    TVMQuantError
        What the stages raise; nothing half-written is left.
    """
    from tvmquant.deploy.destination import TABLE_NAME, check_destination

    path, out = Path(path), Path(out)
    check_destination(out, force=True)  # before the slow stages, and before a cache is written
    clock = Clock(stage)
    if percentile is not None and calibration_method is None:
        calibration_method = "percentile"
    scheme = _given(activation_scheme=activation_scheme)
    calibration_options = {**_given(method=calibration_method, percentile=percentile), **scheme}
    quantize_options = {
        **_given(weight_method=weight_method, bound_pairs=bound_pairs),
        **scheme,
    }
    _check_quantize_options(activation_scheme, weight_method)
    _check_plan_options(wishes, plan)
    if tune_seconds is not None:
        table = table or out / TABLE_NAME
    recipe = Preprocess.parse(preprocess)

    with clock.stage("load"):
        from tvmquant.deploy.compiler import find_linker
        from tvmquant.deploy.manifest import file_sha256
        from tvmquant.frontend import load_onnx
        from tvmquant.target import parse_target

        # mistakes are told before calibration; those of the file before TVM is loaded
        shapes = {name: tuple(shape) for name, shape in (input_shapes or {}).items()}
        graph = load_onnx(path, input_shapes=shapes or None)
        _check_method(_given(method=calibration_method, percentile=percentile))
        parsed_target = parse_target(target)
        find_linker(parsed_target)
        dataset = _open_calibration_data(graph, data, recipe, select, samples)
        fingerprints = {"graph": graph.fingerprint(), "data": dataset.fingerprint()}
        given = _read_plan(plan, graph) if plan is not None else None
        _check_wishes(graph, wishes, target)
        database = _open_table(table, target, threads, create=tune_seconds is not None)
        settings: dict[str, Any] = {
            **fingerprints,
            "calibration": calibration_options,
            "quantization": {**quantize_options, "strict": strict},
            "target": target,
            "threads": threads,
            "batch": batch,
            "input_shapes": {name: list(shape) for name, shape in shapes.items()},
            "wishes": wishes.settings() if wishes else None,
            "plan": {name: layer.choice for name, layer in given.layers.items()} if given else None,
            "table": None if database is None else _table_state(database),
        }
        if not force and (built := _existing(out, settings, parsed_target)) is not None:
            record = _existing_record(out) if wishes else None
            if record is not None or wishes is None:
                return Compilation(
                    built, clock.seconds, calibration_cached=True, up_to_date=True, record=record,
                    plan=_existing_plan(out) if wishes else given,
                    outputs=_existing_outputs(out, built),
                )  # fmt: skip
            force = True  # an earlier run was interrupted after it had built, before it measured

    calibration, cached = _calibration(clock, graph, dataset, out, calibration_options)
    if database is not None and tune_seconds is not None:
        planned = given.choices.values() if given else [W8A8]
        database = _tuned(
            clock, graph, calibration, database.folder, target, threads, batch, tune_seconds,
            wishes.measured if wishes else planned,
        )  # fmt: skip
        settings["table"] = _table_state(database)
    tilings = None if database is None else database.tilings()
    chosen = None
    if wishes is not None:
        from tvmquant.mixed_precision.choose import Setup, choose_plan

        setup = Setup(
            graph, calibration, dataset, target, threads, batch, tilings,
            settings["table"] or "", quantize_options,
        )  # fmt: skip
        chosen = choose_plan(setup, wishes, out, clock.stage)
        given = chosen.plan
    untuned: list[str] = []
    with clock.stage("quantize"):
        from tvmquant.quantization import quantize

        choices = given.choices if given else None
        quantized = quantize(graph, calibration, choices=choices, strict=strict, **quantize_options)
    with clock.stage("build"):
        from tvmquant.deploy.build import build
        from tvmquant.tuning.database import noting

        manifest = build(
            quantized,
            target=target,
            out=out,
            threads=threads,
            batch=batch,
            force=force,
            model={
                "path": str(path.absolute()),
                "sha256": file_sha256(path),
                "bytes": path.stat().st_size,
                "settings": settings,
            },
            preprocess=recipe.model_dump(mode="json"),
            tilings=None if tilings is None else noting(tilings, untuned),
        )
        _replace_plan(out, given)
    outputs: tuple[OutputQuality, ...] = ()
    if settings["data"]:  # else calibrating has read them, once and for all
        with clock.stage("compare") as progress:
            outputs = _compared(graph, dataset, out, manifest, progress)
    record = None
    if chosen is not None:
        with clock.stage("measure") as progress:
            record = _measured(chosen, out, progress)
    return Compilation(
        manifest, clock.seconds, calibration_cached=cached, record=record, plan=given,
        untuned=tuple(untuned), outputs=outputs,
    )  # fmt: skip


def plan_onnx(
    path: str | os.PathLike[str],
    data: Any,
    wishes: Wishes | None = None,
    *,
    out: str | os.PathLike[str],
    preprocess: PreprocessLike = None,
    select: str | Mapping[str, Any] | None = None,
    samples: int | None = DEFAULT_SAMPLES,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
    target: str = "native",
    threads: int | None = None,
    batch: int = 1,
    table: str | os.PathLike[str] | None = None,
    tune_seconds: float | None = None,
    stage: Stage = silent_stage,
) -> Chosen:
    """Choose the bit widths of an ONNX model and write them as a plan, without building.

    Parameters
    ----------
    path, data, preprocess, select, samples, input_shapes, target, threads, batch
        As of `compile_onnx`.
    wishes : Wishes, optional
        Default: no budget, which gives every layer 8 bits and says what narrower ones would cost.
    out : path
        The plan's file. Calibration, sensitivity and latencies are kept beside it, in a folder
        ``NAME-measurements``, for a later run with other budgets.
    table, tune_seconds, stage
        As of `compile_onnx`.

    Raises
    ------
    TVMQuantError
        What the stages raise.
    """
    from tvmquant.deploy.destination import TABLE_NAME
    from tvmquant.mixed_precision.wishes import Wishes

    out = Path(out)
    if out.is_dir():
        raise DataError(f"{out} is a folder; name a file for the plan, such as {out / PLAN_NAME}")
    clock = Clock(stage)
    wishes = wishes or Wishes()
    folder = out.with_name(f"{out.stem}-measurements")
    if tune_seconds is not None:
        table = table or folder / TABLE_NAME
    with clock.stage("load"):
        from tvmquant.frontend import load_onnx
        from tvmquant.target import parse_target

        shapes = {name: tuple(shape) for name, shape in (input_shapes or {}).items()}
        graph = load_onnx(path, input_shapes=shapes or None)
        parse_target(target)
        recipe = Preprocess.parse(preprocess)
        dataset = _open_calibration_data(graph, data, recipe, select, samples)
        _check_wishes(graph, wishes, target)
        database = _open_table(table, target, threads, create=tune_seconds is not None)
    calibration, _ = _calibration(clock, graph, dataset, folder, {})
    tilings, state = None, ""
    if database is not None:
        if tune_seconds is not None:
            database = _tuned(
                clock, graph, calibration, database.folder, target, threads, batch, tune_seconds,
                wishes.measured,
            )  # fmt: skip
        tilings, state = database.tilings(), _table_state(database)
    from tvmquant.mixed_precision.choose import Setup, choose_plan

    setup = Setup(graph, calibration, dataset, target, threads, batch, tilings, state)
    chosen = choose_plan(setup, wishes, folder, clock.stage)
    chosen.plan.save(out)
    return chosen


def _calibration(
    clock: Clock, graph: Graph, dataset: Dataset, folder: Path, options: Mapping[str, Any]
) -> tuple[Calibration, bool]:
    """Return the ranges, and whether a file in the folder had them."""
    with clock.stage("calibrate") as progress:
        fingerprints = {"graph": graph.fingerprint(), "data": dataset.fingerprint()}
        cache = _cache_path(folder, fingerprints, options)
        calibration = _cached_calibration(cache)
        if calibration is not None:
            return calibration, True
        from tvmquant.quantization import calibrate

        calibration = calibrate(graph, dataset, progress=progress, **options)
        if cache is not None:
            cache.parent.mkdir(parents=True, exist_ok=True)
            calibration.save(cache)
        return calibration, False


def _replace_plan(out: Path, plan: Plan | None) -> None:
    """Keep the plan that a library was built from, and nothing of an earlier one."""
    from tvmquant.mixed_precision import RECORD_NAME
    from tvmquant.output_record import OUTPUTS_NAME
    from tvmquant.report import REPORT_NAME

    for stale in (RECORD_NAME, OUTPUTS_NAME, REPORT_NAME):
        (out / stale).unlink(missing_ok=True)
    if plan is None:
        (out / PLAN_NAME).unlink(missing_ok=True)
    else:
        plan.save(out / PLAN_NAME)


def _check_plan_options(wishes: Any, plan: Any) -> None:
    if wishes is not None and plan is not None:
        raise AllocationError(
            "a plan already says the bit widths; leave out either the plan or budgets and choices"
        )


def _read_plan(path: str | os.PathLike[str], graph: Graph) -> Plan:
    """Return a plan for the graph, with no more predictions than hold for an edited one too."""
    from tvmquant.allocation import Plan
    from tvmquant.allocation.costs import Costs
    from tvmquant.layers import quantizable_layers

    plan = Plan.load(path)
    layers = quantizable_layers(graph)
    plan.check(layers, graph.fingerprint())
    costs, choices = Costs(), plan.choices
    known = {name: costs.total(name, layers, choices) for name in ("size", "bops")}
    return plan.model_copy(update={"predicted": known})


def _check_wishes(graph: Graph, wishes: Wishes | None, target: str) -> None:
    if wishes is not None:
        from tvmquant.layers import quantizable_layers
        from tvmquant.mixed_precision.choose import check_target, check_wishes

        check_target(target)
        check_wishes(quantizable_layers(graph), wishes)


def _open_table(
    table: str | os.PathLike[str] | None, target: str, threads: int | None, *, create: bool
) -> Database | None:
    if table is None:
        return None
    from tvmquant.target import parse_target, physical_cores
    from tvmquant.tuning import Database

    return Database(table, parse_target(target), threads or physical_cores(), create=create)


def _table_state(database: Database) -> str:
    """Tell measurements apart: a file of them only ever grows."""
    return f"{database.path.absolute()}, {len(database)} records"


def _tuned(
    clock: Clock,
    graph: Graph,
    calibration: Calibration,
    table: Path,
    target: str,
    threads: int | None,
    batch: int,
    seconds: float,
    choices: Iterable[BitChoice],
) -> Database:
    """Measure into a table for so long."""
    from tvmquant.tuning.tune import tune

    with clock.stage("tune") as progress:
        tuned = tune(
            graph, table, target=target, threads=threads, choices=choices,
            calibration=calibration, batch=batch, seconds=seconds,
            progress=lambda state: progress(round(state.elapsed), round(seconds)),
        )  # fmt: skip
    if tuned.tuning.interrupted:
        raise KeyboardInterrupt  # what was measured is kept
    return tuned.database


def _measured(chosen: Chosen, out: Path, progress: Progress) -> MixedPrecisionRecord:
    """Time the library that was built from a plan, and keep what led to it."""
    from tvmquant.benchmark import measure, random_inputs
    from tvmquant.deploy.loader import load
    from tvmquant.mixed_precision import RECORD_NAME
    from tvmquant.mixed_precision.choose import make_record

    model = load(out)
    latency = measure(model, random_inputs(model.inputs), progress=progress)
    record = make_record(chosen, latency.median_ms)
    record.save(out / RECORD_NAME)
    return record


def _compared(
    graph: Graph, dataset: Dataset, out: Path, manifest: Manifest, progress: Progress
) -> tuple[OutputQuality, ...]:
    """Compare the library with the float model on a few items, and keep what that found."""
    from tvmquant.deploy.loader import load
    from tvmquant.evaluation import compare_outputs
    from tvmquant.output_record import OUTPUTS_NAME, OutputRecord

    try:
        model = load(out)
    except ArtifactError:  # for another processor
        return ()
    step = max(1, len(dataset) // COMPARED) if dataset.has_length else 1
    few = dataset.subset(step=step, limit=COMPARED)
    count, outputs = compare_outputs(model, few, graph, progress)
    OutputRecord.of(manifest.library["sha256"], count, outputs).save(out / OUTPUTS_NAME)
    return outputs


def _existing_outputs(out: Path, manifest: Manifest) -> tuple[OutputQuality, ...]:
    from tvmquant.output_record import read_outputs

    record = read_outputs(out, manifest)
    return () if record is None else record.qualities()


def _existing_record(out: Path) -> MixedPrecisionRecord | None:
    from tvmquant.mixed_precision import RECORD_NAME, MixedPrecisionRecord

    path = out / RECORD_NAME
    return MixedPrecisionRecord.load(path) if path.is_file() else None


def _existing_plan(out: Path) -> Plan | None:
    from tvmquant.allocation import Plan

    path = out / PLAN_NAME
    return Plan.load(path) if path.is_file() else None


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _check_method(options: Mapping[str, Any]) -> None:
    """Raise before the slow stages where the observer does not exist."""
    from tvmquant.calibration import make_observer

    if options:
        make_observer(**options)


def _check_quantize_options(scheme: str | None, weight_method: str | None) -> None:
    from tvmquant.quantizer import check_scheme, check_weight_method

    if scheme is not None:
        check_scheme(scheme)
    if weight_method is not None:
        check_weight_method(weight_method)


def _open_calibration_data(
    graph: Graph, data: Any, recipe: Preprocess, select: Any, samples: int | None
) -> Dataset:
    dataset = open_data(data, recipe, inputs=graph.item_inputs(), select=select)
    if samples is None:
        return dataset
    if samples < 1:
        raise DataError(f"samples = {samples}; expected at least 1")
    step = max(1, len(dataset) // samples) if dataset.has_length else 1
    return dataset.subset(step=step, limit=samples)


def _existing(out: Path, settings: Mapping[str, Any], target: tvm.target.Target) -> Manifest | None:
    """Return the manifest of a library that would be built alike; None where there is none.

    Raises
    ------
    ArtifactError
        When a library is there that was built from other settings, for another processor or by
        other versions, or is damaged.
    """
    from tvmquant.deploy.describe import describe_target, present_versions
    from tvmquant.deploy.manifest import Manifest, file_sha256

    if not (out / "manifest.json").is_file():
        return None
    manifest = Manifest.load(out)
    library = out / "model.so"
    intact = library.is_file() and file_sha256(library) == manifest.library["sha256"]
    alike = manifest.target == describe_target(target) and manifest.versions == present_versions()
    if intact and alike and settings["data"] and manifest.model.get("settings") == settings:
        return manifest
    raise ArtifactError(
        f"{out} holds a library that was built from another model, other data or other settings, "
        "or for another processor, or by another version of tvmquant or TVM; pass --force "
        "to replace it, or choose another folder"
    )


def _cache_path(
    out: Path, fingerprints: Mapping[str, str | None], options: Mapping[str, Any]
) -> Path | None:
    if fingerprints["data"] is None:
        return None
    from tvmquant.calibration.calibration import SCHEMA_VERSION

    key = json.dumps([SCHEMA_VERSION, dict(fingerprints), dict(options)], sort_keys=True)
    return out / f"calibration-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _cached_calibration(cache: Path | None) -> Calibration | None:
    if cache is None or not cache.is_file():
        return None
    from tvmquant.calibration import Calibration

    return Calibration.load(cache)
