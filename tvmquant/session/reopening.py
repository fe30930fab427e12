"""The annotated network that an earlier run led to: of a library, or of a plan.

Nothing is calibrated or chosen again. The float model is read once more, and what the run kept says
the rest: the calibration, the bit widths, how weights were rounded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmquant.errors import ArtifactError, DataError, ModelError
from tvmquant.session.session import NO_DATA

if TYPE_CHECKING:
    from tvmquant.allocation import Plan
    from tvmquant.bit_choice import BitChoice
    from tvmquant.calibration import Calibration
    from tvmquant.deploy.manifest import Manifest
    from tvmquant.graph import Graph


@dataclass(frozen=True)
class Reopened:
    """A network as an earlier run left it.

    Attributes
    ----------
    annotated : Graph
        Level L1, calibrated: what the library rounds.
    plan : Plan
        The choice of every layer.
    preprocess : dict, optional
        Recipe with which images were read, where it is known.
    """

    annotated: Graph
    plan: Plan
    preprocess: dict[str, Any] | None = None


def reopen(
    source: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    calibration: str | os.PathLike[str] | None = None,
    bound_pairs: bool | None = None,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
) -> Reopened:
    """Return the annotated network that a library was built from, or that a plan describes.

    Parameters
    ----------
    source : path
        A folder that `tvmquant.compile_onnx` wrote, or a plan that `tvmquant.plan_onnx` wrote, with
        its measurements beside it.
    model : path, optional
        The ONNX file; of a library, by default where it was when that was compiled. A plan does not
        tell.
    calibration : path, optional
        Of a plan: a calibration of the model. By default the only one among its measurements.
    bound_pairs : bool, optional
        Of a plan: as of `tvmquant.quantize`; by default as its target needs it.
    input_shapes
        Of a plan: as of `tvmquant.load_onnx`.

    Raises
    ------
    ModelError
        When the ONNX file is not known, not there, or another.
    ArtifactError
        When the library does not tell what it was built from.
    DataError
        When a calibration is missing or of another model, or `source` is neither.
    AllocationError
        When the plan is of another model.
    """
    source = Path(source)
    if source.is_dir():
        return _library(source, None if model is None else Path(model))
    if not source.is_file():
        raise DataError(
            f"{str(source)!r} does not exist; expected a folder that `tvmquant compile` wrote, or "
            "a plan that `tvmquant plan` wrote"
        )
    if model is None:
        raise ModelError(
            f"the plan {str(source)!r} does not tell where its model is; pass --model MODEL.onnx"
        )
    shapes = {name: tuple(shape) for name, shape in (input_shapes or {}).items()}
    given = None if calibration is None else Path(calibration)
    return _plan(source, Path(model), given, bound_pairs, shapes)


def _library(folder: Path, model: Path | None) -> Reopened:
    from tvmquant.deploy.manifest import Manifest
    from tvmquant.frontend import load_onnx
    from tvmquant.quantization import apply_calibration
    from tvmquant.session.library_folder import kept_reconstruction

    manifest = Manifest.load(folder)
    settings: Mapping[str, Any] = manifest.model.get("settings", {})
    if "graph" not in settings:
        raise ArtifactError(
            f"{folder}: the library does not tell what it was built from, because "
            "`tvmquant compile` did not build it; export the annotated graph that it was made of "
            "with tvmquant.export_onnx"
        )
    path = _model_of(manifest, folder, model)
    shapes = {name: tuple(shape) for name, shape in settings["input_shapes"].items()}
    graph = load_onnx(
        path, input_shapes=shapes or None, requantize=settings.get("requantize", False)
    )
    if graph.fingerprint() != settings["graph"]:
        raise ArtifactError(
            f"{folder}: this version of tvmquant reads {path} otherwise than the one that compiled "
            f"it ({manifest.versions['tvmquant']}); compile the model again"
        )
    rounding = {k: v for k, v in settings["quantization"].items() if k != "strict"}
    choices = _choices_of(manifest, graph)
    annotated = apply_calibration(
        graph, _calibration_of(folder, settings), choices=choices,
        reconstruction=kept_reconstruction(folder, manifest), **rounding,
    )  # fmt: skip
    return Reopened(annotated, _plan_of(folder, graph, choices), manifest.preprocess)


def _model_of(manifest: Manifest, folder: Path, given: Path | None) -> Path:
    """Return the file that a library was compiled from, certain to be that."""
    from tvmquant.deploy.manifest import file_sha256

    path = given or Path(manifest.model["path"])
    if not path.is_file():
        raise ModelError(
            f"the model {path} that {folder} was compiled from is not there; pass --model "
            "MODEL.onnx, where it is now"
        )
    found, expected = file_sha256(path), manifest.model["sha256"]
    if found != expected:
        raise ModelError(
            f"{path} is not the file that {folder} was compiled from (SHA-256 {found[:12]}..., "
            f"that one had {expected[:12]}...); pass --model MODEL.onnx, or compile again"
        )
    return path


def _calibration_of(folder: Path, settings: Mapping[str, Any]) -> Calibration | None:
    from tvmquant.calibration import Calibration
    from tvmquant.stage_cache import kept

    if settings["data"] == NO_DATA:
        return None
    if settings["data"] is None:
        raise ArtifactError(
            f"{folder}: the library was calibrated with data that can be read only once, so that "
            "its calibration was not kept; compile with a folder, a .npy or an .npz"
        )
    follows_from = [settings["graph"], settings["data"], settings["calibration"]]
    calibration = kept(folder, "calibration", Calibration, follows_from)
    if calibration is None:
        raise DataError(
            f"{folder} holds no calibration of this library (calibration-*.json) by this version "
            "of tvmquant; compile the model again with --force"
        )
    return calibration


def _choices_of(manifest: Manifest, graph: Graph) -> dict[str, BitChoice]:
    """Return what each layer whose width is free was built with."""
    from tvmquant.bit_choice import BitChoice
    from tvmquant.layers import quantizable_layers

    built = {layer.id: layer.choice for layer in manifest.layers if layer.choice}
    free = [layer.id for layer in quantizable_layers(graph) if layer.imported is None]
    return {name: BitChoice.parse(built[name]) for name in free if name in built}


def _plan_of(folder: Path, graph: Graph, choices: Mapping[str, BitChoice]) -> Plan:
    """Return the plan that lies beside a library, unless it was edited since; else its choices."""
    from tvmquant.allocation import Plan
    from tvmquant.session.library_folder import kept_plan

    plan = kept_plan(folder)
    if plan is not None and plan.choices == choices:
        return plan
    layers = {name: {"choice": str(choice)} for name, choice in choices.items()}
    return Plan.model_validate(
        {"model": graph.name, "fingerprint": graph.fingerprint(), "layers": layers}
    )


def _plan(
    source: Path,
    model: Path,
    calibration: Path | None,
    bound_pairs: bool | None,
    shapes: Mapping[str, tuple[int | None, ...]],
) -> Reopened:
    from tvmquant.allocation import Plan
    from tvmquant.calibration import Calibration
    from tvmquant.frontend import load_onnx
    from tvmquant.layers import is_quantized, quantizable_layers
    from tvmquant.machine import Machine
    from tvmquant.quantization import apply_calibration
    from tvmquant.session.options import Options

    plan = Plan.load(source)
    graph = load_onnx(model, input_shapes=shapes or None)
    if is_quantized(graph):  # widths are chosen where its scales are left out
        graph = load_onnx(model, input_shapes=shapes or None, requantize=True)
    plan.check(quantizable_layers(graph), graph.fingerprint())
    if calibration is None:
        chosen = _only_calibration(source, graph)
    else:
        chosen = Calibration.load(calibration)
    rounding = Options(bound_pairs=bound_pairs).rounding(Machine.of(plan.target or "native", 1))
    return Reopened(apply_calibration(graph, chosen, choices=plan.choices, **rounding), plan)


def _only_calibration(source: Path, graph: Graph) -> Calibration:
    """Return the one calibration of a model among the measurements of a plan."""
    from tvmquant.calibration import Calibration
    from tvmquant.calibration.calibration import model_fingerprint
    from tvmquant.levels import annotated

    folder = source.with_name(f"{source.stem}-measurements")
    own = model_fingerprint(annotated(graph))
    known = {path: Calibration.load(path) for path in sorted(folder.glob("calibration-*.json"))}
    found = {path: record for path, record in known.items() if record.model == own}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise DataError(
            f"{folder} holds {len(found)} calibrations of the model, with several data: "
            f"{', '.join(path.name for path in found)}; pass --calibration with one of them"
        )
    raise DataError(
        f"{folder} holds no calibration of the model (calibration-*.json); pass --calibration "
        "FILE.json, or make the plan again"
    )
