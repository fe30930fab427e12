"""Find the float model that a library was compiled from, to compare with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tvmquant.cli.output import print_warning
from tvmquant.errors import ModelError

if TYPE_CHECKING:
    from tvmquant.deploy.manifest import Manifest
    from tvmquant.graph import Graph


def load_float_model(manifest: Manifest, path: Path | None) -> Graph:
    """Return the float graph of an ONNX file, warning where it is not the library's own.

    Parameters
    ----------
    manifest : Manifest
        Of the library.
    path : Path, optional
        The ONNX file; default: the one that the manifest names.

    Raises
    ------
    ModelError
        When the file is not known or not there, or cannot be imported.
    """
    from tvmquant.deploy.manifest import file_sha256
    from tvmquant.frontend import load_onnx

    if not is_available(manifest, path):
        named = path or manifest.model.get("path", "of this library")
        raise ModelError(
            f"the float model {named} is not there; pass --model MODEL.onnx to compare with it"
        )
    chosen = path or Path(manifest.model["path"])
    if manifest.model.get("sha256") not in (None, file_sha256(chosen)):
        print_warning(f"{chosen} is not the file that the library was compiled from")
    settings = manifest.model.get("settings", {})
    shapes = settings.get("input_shapes", {})
    return load_onnx(
        chosen, input_shapes={name: tuple(shape) for name, shape in shapes.items()} or None,
        requantize=bool(settings.get("requantize")),
    )  # fmt: skip


def is_available(manifest: Manifest, path: Path | None) -> bool:
    """Return whether `path`, by default the file that the manifest names, is there."""
    known = path or manifest.model.get("path")
    return known is not None and Path(known).is_file()
