"""What lies beside a library in its folder: the plan it was built from, why, how close it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tvmquant.errors import ArtifactError, DataError
from tvmquant.machine import Machine

if TYPE_CHECKING:
    from tvmquant.allocation import Plan
    from tvmquant.deploy.manifest import Manifest
    from tvmquant.mixed_precision import MixedPrecisionRecord
    from tvmquant.output_quality import OutputQuality
    from tvmquant.reconstructed import Reconstructed

PLAN_NAME: Final = "plan.json"


def up_to_date(folder: Path, settings: Mapping[str, Any], machine: Machine) -> Manifest | None:
    """Return the manifest of a library that would be built alike; None where there is none.

    Parameters
    ----------
    folder : Path
    settings : mapping
        All that a build follows from, as a manifest keeps it (``model.settings``).
    machine : Machine

    Raises
    ------
    ArtifactError
        When a library is there that was built from other settings, for another processor or by
        other versions, or is damaged.
    """
    from tvmquant.deploy.describe import describe_target, present_versions
    from tvmquant.deploy.manifest import LIBRARY_NAME, MANIFEST_NAME, Manifest, file_sha256

    if not (folder / MANIFEST_NAME).is_file():
        return None
    manifest = Manifest.load(folder)
    library = folder / LIBRARY_NAME
    intact = library.is_file() and file_sha256(library) == manifest.library["sha256"]
    alike = manifest.target == describe_target(machine) and manifest.versions == present_versions()
    if intact and alike and settings["data"] and manifest.model.get("settings") == settings:
        return manifest
    raise ArtifactError(
        f"{folder} holds a library that was built from another model, other data or other "
        "settings, or for another processor, or by another version of tvmquant or TVM; pass "
        "--force to replace it, or choose another folder"
    )


def kept_record(folder: Path) -> MixedPrecisionRecord | None:
    """Return how the library got its bit widths; None where nothing chose them."""
    from tvmquant.mixed_precision import RECORD_NAME, MixedPrecisionRecord

    path = folder / RECORD_NAME
    return MixedPrecisionRecord.load(path) if path.is_file() else None


def kept_plan(folder: Path) -> Plan | None:
    """Return the plan that the library was built from, if any."""
    from tvmquant.allocation import Plan

    path = folder / PLAN_NAME
    return Plan.load(path) if path.is_file() else None


def kept_outputs(folder: Path, manifest: Manifest) -> tuple[OutputQuality, ...]:
    """Return how close the library's outputs were to the float model's; empty if not compared."""
    from tvmquant.output_record import read_outputs

    record = read_outputs(folder, manifest)
    return () if record is None else record.qualities()


def kept_reconstruction(folder: Path, manifest: Manifest) -> Reconstructed | None:
    """Return how weights of the library were rounded anew; None where none were.

    Raises
    ------
    DataError
        When the file is missing or damaged.
    """
    from tvmquant.reconstructed import Reconstructed

    name = manifest.model.get("reconstruction")
    if name is None:
        return None
    if not (folder / name).is_file():
        raise DataError(
            f"{folder} holds no {name}, the weights of this library that were rounded anew; "
            "compile the model again with --force"
        )
    return Reconstructed.load(folder / name)


def replace_plan(folder: Path, plan: Plan | None) -> None:
    """Keep the plan that a new library was built from, and nothing that is about an earlier one."""
    from tvmquant.deploy.destination import REPORT_NAME
    from tvmquant.mixed_precision import RECORD_NAME
    from tvmquant.output_record import OUTPUTS_NAME

    for stale in (RECORD_NAME, OUTPUTS_NAME, REPORT_NAME):
        (folder / stale).unlink(missing_ok=True)
    if plan is None:
        (folder / PLAN_NAME).unlink(missing_ok=True)
    else:
        plan.save(folder / PLAN_NAME)
