"""Where an artefact may be written: nowhere that tvmquant did not make."""

from __future__ import annotations

from pathlib import Path

from tvmquant.deploy.manifest import LIBRARY_NAME, MANIFEST_NAME, is_manifest
from tvmquant.errors import ArtifactError

REPORT_NAME = "report.html"
# where a compilation that tunes keeps its measurements, unless told otherwise
TABLE_NAME = "table"
# weights that were rounded anew, and what an interrupted search of them has found
ROUNDED_NAME = "rounded"
SEARCHED = "reconstruction-*.pt"


def check_destination(folder: Path, *, force: bool) -> Path:
    """Return the absolute folder, if it may be written.

    Raises
    ------
    ArtifactError
        If something that tvmquant did not write is there, or an artefact and not ``force``.
    """
    folder = folder.absolute()
    if not folder.exists():
        return folder
    manifest = folder / MANIFEST_NAME
    if not (folder.is_dir() and (is_manifest(manifest) or only_our_files(folder))):
        raise ArtifactError(f"{folder} exists and is not an artefact of tvmquant; choose another")
    if manifest.is_file() and not force:
        raise ArtifactError(f"{folder} exists; pass force (--force) to build it again")
    return folder


def only_our_files(folder: Path) -> bool:
    """Whether a folder holds nothing but what an earlier, perhaps unfinished run wrote."""
    ours = (LIBRARY_NAME, REPORT_NAME, TABLE_NAME, ROUNDED_NAME)
    return all(p.name in ours or p.suffix == ".json" or p.match(SEARCHED) for p in folder.iterdir())
