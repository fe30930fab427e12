"""``tvmquant run``: run a library on arrays in files."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvmquant.atomic_write import atomic_write
from tvmquant.cli import options
from tvmquant.cli.output import StageReporter, print_json
from tvmquant.errors import DataError

if TYPE_CHECKING:
    from tvmquant.deploy.loader import Model


def run(
    library: options.Library,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN.npy", help="The input; for several an .npz with the inputs' names."
        ),
    ],
    result: Annotated[
        Path, typer.Argument(metavar="OUT.npy", help="The output; for several an .npz.")
    ],
    raw: Annotated[
        bool, typer.Option("--raw", help="Read and write raw integers, channels last.")
    ] = False,
    width: options.Width = None,
    threads: options.Threads = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Run a library once."""
    from tvmquant.deploy.loader import load

    model = load(library, threads=threads, raw=raw, width=width)
    names = [info.name for info in model.outputs]
    if result.suffix not in (".npy", ".npz") or (len(names) > 1 and result.suffix == ".npy"):
        raise DataError(
            f"output file {str(result)!r}: the model has {len(names)} output(s) "
            f"({', '.join(names)}); expected a name ending in "
            f"{'.npz' if len(names) > 1 else '.npy or .npz'}"
        )
    inputs = _read_inputs(model, source)
    with StageReporter(quiet=quiet)("run"):
        outputs = model(*inputs)
    arrays = outputs if isinstance(outputs, tuple) else (outputs,)
    _write(result, names, arrays)
    if as_json:
        described = [
            {"name": name, "shape": list(array.shape), "dtype": str(array.dtype)}
            for name, array in zip(names, arrays, strict=True)
        ]
        print_json({"library": str(library), "path": str(result), "outputs": described})


def _read_inputs(model: Model, path: Path) -> list[Any]:
    """Return the model's inputs in order, from an .npy or an .npz.

    Raises
    ------
    DataError
        When the file cannot be read or lacks an input.
    """
    import numpy as np

    names = [info.name for info in model.inputs]
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            arrays = dict.fromkeys(names[:1], content)
        else:
            with content:
                arrays = {name: content[name] for name in content.files}
    except OSError as error:
        raise DataError(f"input {str(path)!r} cannot be read: {error.strerror}") from error
    except (ValueError, EOFError, zipfile.BadZipFile):
        raise DataError(
            f"input {str(path)!r} cannot be read as a NumPy file of numbers; write it with "
            "numpy.save or numpy.savez"
        ) from None
    if missing := [name for name in names if name not in arrays]:
        raise DataError(
            f"input {str(path)!r} lacks {', '.join(missing)}; the model takes {', '.join(names)}, "
            "several in one .npz under these names"
        )
    return [arrays[name] for name in names]


def _write(path: Path, names: list[str], outputs: tuple[Any, ...]) -> None:
    """Write the outputs; the file appears complete or not at all."""
    import numpy as np

    try:
        with atomic_write(path) as part, part.open("wb") as file:
            if path.suffix == ".npz":
                np.savez(file, **dict(zip(names, outputs, strict=True)))
            else:
                np.save(file, outputs[0])
    except OSError as error:
        raise DataError(f"output {str(path)!r} cannot be written: {error.strerror}") from error
