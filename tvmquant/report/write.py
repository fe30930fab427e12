"""Read what lies in the folder of a library and write the page about it."""

from __future__ import annotations

import os
from pathlib import Path

from tvmquant.atomic_write import atomic_write
from tvmquant.errors import DataError


def write_report(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    profile: bool = False,
) -> Path:
    """Write the report of a library as one HTML file that needs no other file and no network.

    Parameters
    ----------
    folder : path
        What `tvmquant.build` wrote. Where `mixed-precision.json` lies in it, the page also explains
        how the bit widths were chosen; where `outputs.json` does, how close the outputs are to the
        float model's.
    out : path, optional
        File to write; default: ``report.html`` in the folder. Appears complete or not at all.
    profile : bool
        Time the library and each of its layers now, on this machine.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ArtifactError
        If the folder holds no intact library, or one that cannot be profiled on this machine.
    DataError
        If the record of the bit widths is damaged or of another library, or the file cannot be
        written.

    Examples
    --------
    >>> tvmquant.write_report("resnet50-int8")          # doctest: +SKIP
    PosixPath('resnet50-int8/report.html')
    """
    from tvmquant.deploy.destination import REPORT_NAME
    from tvmquant.deploy.manifest import Manifest
    from tvmquant.mixed_precision import RECORD_NAME, MixedPrecisionRecord
    from tvmquant.output_record import read_outputs
    from tvmquant.report.content import read_content
    from tvmquant.report.page import render
    from tvmquant.report.timing import time_library

    folder = Path(folder)
    manifest = Manifest.load(folder)
    path = folder / RECORD_NAME
    record = MixedPrecisionRecord.load(path) if path.exists() else None
    try:
        content = read_content(manifest, record, read_outputs(folder, manifest))
    except DataError as error:
        raise DataError(f"{path}: {error}; compile the model again") from None
    if profile:
        content = content.with_timing(time_library(folder))
    target = Path(out) if out is not None else folder / REPORT_NAME
    _write(target, render(content))
    return target


def _write(path: Path, page: str) -> None:
    try:
        with atomic_write(path) as part:
            # A name out of a JSON file may hold half a surrogate pair, which UTF-8 cannot express.
            part.write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"report {str(path)!r} cannot be written: {error.strerror}") from error
