"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvmquant.errors import DataError

Library = Annotated[
    Path, typer.Argument(metavar="OUT", help="Folder that `tvmquant compile` wrote.")
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="D",
        help="Folder or .tar of images (labels.csv or class folders), .npy or .npz.",
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--preprocess",
        metavar="P",
        help="Recipe for images: a preset (imagenet, cifar10, squeezenet-caffe, none), a JSON file "
        'or inline JSON such as \'{"resize": 256, "crop": 224}\'.',
    ),
]
Select = Annotated[
    str | None,
    typer.Option(
        "--select",
        metavar="S",
        help="Which items: 'step=10' every tenth, 'step=10,exclude' the others, 'limit=100'.",
    ),
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Default: the physical cores.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]

InputShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shape",
        metavar="NAME=N,C,H,W",
        help="Shape of an input that the model leaves open; ? for a batch that stays open.",
    ),
]


def parse_input_shapes(specs: list[str] | None) -> dict[str, tuple[int | None, ...]]:
    """Return the shapes of ``NAME=1,3,224,224`` by input; ``?`` stands for None.

    Raises
    ------
    DataError
        When one is not of that form.
    """
    shapes: dict[str, tuple[int | None, ...]] = {}
    for spec in specs or []:
        name, _, extents = spec.rpartition("=")
        try:
            shape = tuple(None if e.strip() == "?" else int(e) for e in extents.split(","))
        except ValueError:
            shape = (0,)
        if not name or any(extent is not None and extent < 1 for extent in shape):
            raise DataError(
                f"--input-shape {spec!r} is not understood; expected NAME=N,C,H,W with extents of "
                "at least 1, such as image=1,3,224,224 or image=?,3,224,224"
            )
        shapes[name] = shape
    return shapes
