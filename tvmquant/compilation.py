"""From an ONNX file and data to a built library, or to a plan of bit widths."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmquant.data.preprocess import PreprocessLike
from tvmquant.devices.tracker import Tracker
from tvmquant.errors import DataError
from tvmquant.progress import Clock, Stage, silent_stage
from tvmquant.session import DEFAULT_SAMPLES, Options, Session, open_session

if TYPE_CHECKING:
    from tvmquant.allocation import Plan
    from tvmquant.deploy.manifest import Manifest
    from tvmquant.mixed_precision import MixedPrecisionRecord, Wishes
    from tvmquant.mixed_precision.choose import Chosen
    from tvmquant.output_quality import OutputQuality
    from tvmquant.reconstructed import Reconstructed
    from tvmquant.training import Recipe


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
    reconstruction : Reconstructed, optional
        The weights that were rounded anew.
    """

    manifest: Manifest
    seconds: dict[str, float]
    calibration_cached: bool = False
    up_to_date: bool = False
    record: MixedPrecisionRecord | None = None
    plan: Plan | None = None
    untuned: tuple[str, ...] = ()
    outputs: tuple[OutputQuality, ...] = ()
    reconstruction: Reconstructed | None = None


def compile_onnx(
    path: str | os.PathLike[str],
    data: Any = None,
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
    requantize: bool = False,
    dynamic: bool = False,
    residual_bits: int | None = None,
    choice: str | None = None,
    reconstruct: bool | str | Path | Recipe = False,
    force: bool = False,
    rpc: str | Tracker | None = None,
    rpc_key: str | None = None,
    stage: Stage = silent_stage,
) -> Compilation:
    """Compile an ONNX model into an integer-only library, and compare that with the float model.

    Parameters
    ----------
    path : path
        The ONNX file; or a folder of files ``NAME-w8.onnx``, as training at several widths writes
        them, for a library of all of them (`tvmquant.build`).
    data : path, array or iterable, optional
        What `open_data` reads; the images to calibrate with. A model that is quantized already
        (QDQ) needs none; with data, what it has no scale for is calibrated. None are needed with
        ``dynamic`` either.
    out : path
        Folder of the library. The calibration is kept there too, as ``calibration-KEY.json``, and
        used again by a later run with the same model, data and method.
    preprocess, select
        As of `open_data`. The recipe is written into the manifest.
    samples : int, optional
        Calibrate with at most so many items, spread evenly over the selected ones; None: with all.
    calibration_method, percentile
        As of `calibrate`; None for its default. A percentile alone selects that method.
    activation_scheme, weight_method, strict
        As of `quantize`; None for its default.
    bound_pairs : bool, optional
        As of `quantize`: True makes a model portable, with the same integers on every processor,
        False rounds weights freely. By default pairs are bounded where the target's sums of two
        products saturate. The manifest says which it was, by layer.
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
    requantize : bool
        Leave the scales of a quantized model out, and quantize it anew.
    dynamic : bool
        As of `quantize`: find the ranges of what layers read at run time, where nothing else says
        them.
    residual_bits : int, optional
        As of `quantize`.
    choice : str, optional
        Bit widths of all layers but the ends, such as ``w4a8``, or what is nearest to it.
    reconstruct : bool, str, path or Recipe
        Round weights of 2 to 4 bits anew on the calibration data, by this recipe (`reconstruct`):
        True is ``adaround``, or, of a plan, what its sensitivity was measured with. With wishes
        sensitivity is measured of weights that are rounded so. They are kept in the folder, as
        ``reconstruction-KEY.json``; an interrupted search goes on.
    target, threads, batch, force
        As of `build`; threads must be given with a tracker.
    rpc, rpc_key : str, optional
        ``HOST:PORT`` of an RPC tracker, and the key of its devices: these measure kernels and
        networks instead of this machine.
    stage : callable
        Called with the name of each stage as it begins; a context manager that is left when it
        ends and yields a callable (done, total).

    Raises
    ------
    TVMQuantError
        What the stages raise; nothing half-written is left.
    """
    from tvmquant.deploy.destination import check_destination

    out, clock = Path(out), Clock(stage)
    check_destination(out, force=True)  # before the slow stages, and before a cache is written
    options = Options(
        calibration_method,
        percentile,
        activation_scheme,
        weight_method,
        bound_pairs,
        strict,
        dynamic,
        residual_bits,
    )
    with clock.stage("load"):
        session = open_session(
            path, data, folder=out, clock=clock, preprocess=preprocess, select=select,
            samples=samples, input_shapes=input_shapes, target=target, threads=threads,
            batch=batch, table=table, tune_seconds=tune_seconds, wishes=wishes, plan=plan,
            options=options, requantize=requantize, rpc=rpc, rpc_key=rpc_key, choice=choice,
            reconstruct=reconstruct,
        )  # fmt: skip
        earlier = None if force else _earlier(session)
    if earlier is not None and (earlier.record is not None or wishes is None):
        return earlier
    # an earlier run may have been interrupted after it had built, before it measured
    manifest, untuned = session.build(force=force or earlier is not None)
    outputs = session.compare(manifest)
    record = session.measure()
    return Compilation(
        manifest, clock.seconds, calibration_cached=session.calibration_cached, record=record,
        plan=session.plan, untuned=untuned, outputs=outputs, reconstruction=session.reconstructed,
    )  # fmt: skip


def _earlier(session: Session) -> Compilation | None:
    """Return what an earlier run made of the same; None where it made nothing."""
    from tvmquant.session import library_folder

    folder, settings = session.folder, session.settings(tuned=False)
    manifest = library_folder.up_to_date(folder, settings, session.machine)
    if manifest is None:
        return None
    chosen = session.wishes is not None
    return Compilation(
        manifest,
        session.clock.seconds,
        calibration_cached=True,
        up_to_date=True,
        record=library_folder.kept_record(folder) if chosen else None,
        plan=library_folder.kept_plan(folder) if chosen else session.given,
        outputs=library_folder.kept_outputs(folder, manifest),
        reconstruction=library_folder.kept_reconstruction(folder, manifest),
    )


def plan_onnx(
    path: str | os.PathLike[str],
    data: Any,
    wishes: Wishes | None = None,
    *,
    out: str | os.PathLike[str],
    preprocess: PreprocessLike = None,
    select: str | Mapping[str, Any] | None = None,
    samples: int | None = DEFAULT_SAMPLES,
    bound_pairs: bool | None = None,
    requantize: bool = False,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
    target: str = "native",
    threads: int | None = None,
    batch: int = 1,
    table: str | os.PathLike[str] | None = None,
    tune_seconds: float | None = None,
    rpc: str | Tracker | None = None,
    rpc_key: str | None = None,
    reconstruct: bool | str | Path | Recipe = False,
    stage: Stage = silent_stage,
) -> Chosen:
    """Choose the bit widths of an ONNX model and write them as a plan, without building.

    Parameters
    ----------
    path, data, preprocess, select, samples, bound_pairs, requantize, input_shapes, target
        As of `compile_onnx`; data are needed.
    threads, batch
        As of `compile_onnx`.
    wishes : Wishes, optional
        Default: no budget, which gives every layer 8 bits and says what narrower ones would cost.
    out : path
        The plan's file. Calibration, sensitivity and latencies are kept beside it, in a folder
        ``NAME-measurements``, for a later run with other budgets.
    table, tune_seconds, rpc, rpc_key, reconstruct, stage
        As of `compile_onnx`.

    Raises
    ------
    TVMQuantError
        What the stages raise.
    """
    from tvmquant.mixed_precision.wishes import Wishes
    from tvmquant.session.library_folder import PLAN_NAME

    out, clock = Path(out), Clock(stage)
    if out.is_dir():
        raise DataError(f"{out} is a folder; name a file for the plan, such as {out / PLAN_NAME}")
    with clock.stage("load"):
        session = open_session(
            path, data, folder=out.with_name(f"{out.stem}-measurements"), clock=clock,
            preprocess=preprocess, select=select, samples=samples, input_shapes=input_shapes,
            target=target, threads=threads, batch=batch, table=table, tune_seconds=tune_seconds,
            wishes=wishes or Wishes(), options=Options(bound_pairs=bound_pairs),
            requantize=requantize, rpc=rpc, rpc_key=rpc_key, reconstruct=reconstruct,
        )  # fmt: skip
    chosen = session.chosen
    assert chosen is not None  # there are wishes
    chosen.plan.save(out)
    return chosen
