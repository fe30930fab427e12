"""A folder of one network at several bit widths, as training writes it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tvmquant.errors import ModelError

if TYPE_CHECKING:
    from tvmquant.graph import Graph

_NAME: Final = re.compile(r"(.*)-w([1-9][0-9]?)\.onnx")


def models_at_widths(path: Path) -> dict[int, Path]:
    """Return the files ``NAME-w8.onnx`` of a folder by width, the widest first.

    Of a path that is no folder, that alone, at width 0.

    Raises
    ------
    ModelError
        When a folder holds none, or those of several networks.
    """
    if not path.is_dir():
        return {0: path}
    found: dict[int, Path] = {}
    names: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        if match := _NAME.fullmatch(file.name):
            found[int(match[2])] = names[match[1]] = file
    if len(names) > 1:
        files = " and ".join(file.name for file in names.values())
        raise ModelError(
            f"{path}: {files} are named after several networks; expected one network at several "
            "widths, such as trained-w8.onnx and trained-w4.onnx; move the others elsewhere"
        )
    if not found:
        raise ModelError(
            f"{path} is a folder without files such as trained-w8.onnx; expected an ONNX file, or "
            "what a training at several widths wrote"
        )
    return dict(sorted(found.items(), reverse=True))


def network_name(files: Mapping[int, Path]) -> str | None:
    """Return what files of several widths are named after; None of one file."""
    first = next(iter(files.values()))
    match = _NAME.fullmatch(first.name)
    return match[1] if match and len(files) > 1 else None


def check_as_trained(folder: Path, files: Mapping[int, Path], asked: Sequence[str]) -> None:
    """Refuse what would change a network of several widths, whose widths and scales are trained.

    Parameters
    ----------
    folder : Path
    files : mapping of int to Path
        As of `models_at_widths`.
    asked : sequence of str
        What is asked for, in words.

    Raises
    ------
    ModelError
    """
    if asked:
        raise ModelError(
            f"{folder} holds one network at {', '.join(map(str, files))} bits, with the scales "
            f"that were trained; leave out {' and '.join(asked)}, or give one of its files, such "
            f"as {next(iter(files.values()))}"
        )


def check_scales(graphs: Mapping[int, Graph], files: Mapping[int, Path]) -> None:
    """Refuse networks that would have to be calibrated: each brings its own scales.

    Raises
    ------
    ModelError
    """
    from tvmquant.layers import is_quantized

    for width, graph in graphs.items():
        if not is_quantized(graph):
            raise ModelError(
                f"the model {files[width]} brings no scales; a library of several widths is built "
                "of quantized models (QDQ), as training writes them"
            )
