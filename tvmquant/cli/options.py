"""Arguments and options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tvmquant import default_choices
from tvmquant.errors import AllocationError, DataError, TrainingError, TuningError
from tvmquant.target import MAX_THREADS

if TYPE_CHECKING:
    from tvmquant.mixed_precision.wishes import Wishes

_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600}

Library = Annotated[
    Path, typer.Argument(metavar="OUT", help="Folder that `tvmquant compile` wrote.")
]
Width = Annotated[
    int | None,
    typer.Option(
        "--width", metavar="B", help="Bit width, of a library of several. Default: the widest."
    ),
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
    int | None,
    typer.Option("--threads", min=1, max=MAX_THREADS, help="Default: the physical cores."),
]
Rpc = Annotated[
    str | None,
    typer.Option(
        "--rpc",
        metavar="HOST:PORT",
        help="RPC tracker whose devices run and measure instead of this machine.",
    ),
]
RpcKey = Annotated[
    str | None,
    typer.Option("--rpc-key", metavar="KEY", help="Under which they registered with the tracker."),
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

Latency = Annotated[
    str | None,
    typer.Option("--latency", metavar="B", help="Latency budget: 0.8x of int8, or 12ms."),
]
Size = Annotated[
    str | None, typer.Option("--size", metavar="B", help="Budget of the weights: 0.6x or 1.2MB.")
]
Bops = Annotated[
    str | None, typer.Option("--bops", metavar="B", help="Bit operations: 0.5x or 20G.")
]
Choices = Annotated[
    str | None,
    typer.Option(
        "--choices",
        metavar="C,C,...",
        help="Bit widths that layers may take besides w8a8: weights and activations of 1 to 8 "
        "bits, such as w6a6, w2a8 or (in groups of 32, 64 or 128 weights) w4a8g32. Default: "
        f"{','.join(default_choices.NAMES[1:])}.",
    ),
]
Pins = Annotated[
    list[str] | None,
    typer.Option("--pin", metavar="LAYER=C", help="Give a layer this choice; may be repeated."),
]
FreeEnds = Annotated[
    bool, typer.Option("--free-ends", help="Let the first and the last layer be narrowed too.")
]
SensitivityMethod = Annotated[
    str | None,
    typer.Option(
        "--sensitivity",
        metavar="M",
        help="hessian (default), fisher, output or random; or the sensitivity.json of a training.",
    ),
]
BoundPairs = Annotated[
    bool | None,
    typer.Option(
        "--portable/--free-weights",
        help="Round weights so that every processor, AVX2 included, computes the same integers "
        "fast; or freely. Default: as the target needs it.",
    ),
]
Requantize = Annotated[
    bool,
    typer.Option(
        "--requantize",
        help="Of a model that is quantized already (QDQ): leave its scales out, quantize anew.",
    ),
]
Dynamic = Annotated[
    bool,
    typer.Option(
        "--dynamic",
        help="Find the range of what a layer reads at run time, where neither the model nor data "
        "say it; what lies between layers stays float.",
    ),
]
ResidualBits = Annotated[
    int | None,
    typer.Option(
        "--residual-bits",
        min=2,
        max=8,
        help="Width of what a residual connection shares with narrower layers; default: theirs.",
    ),
]
Reconstruct = Annotated[
    bool,
    typer.Option(
        "--reconstruct",
        help="Round weights of 2 to 4 bits anew on the data (no labels), so that what layers "
        "compute stays near: minutes.",
    ),
]
Reconstruction = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="R",
        help="With --reconstruct: adaround (default, layer by layer), brecq or qdrop (blocks), or "
        "a YAML file. A plan's default: what it was made with.",
    ),
]
Table = Annotated[
    Path | None,
    typer.Option(
        "--table",
        metavar="DIR",
        help="Measurements of `tvmquant tune`: take tilings that beat the default by over 3 %.",
    ),
]
Tune = Annotated[
    str | None,
    typer.Option(
        "--tune", metavar="T", help="First tune for so long (10m), into --table if it is given."
    ),
]


def parse_wishes(
    latency: str | None,
    size: str | None,
    bops: str | None,
    choices: str | None,
    pins: list[str] | None,
    free_ends: bool,
    sensitivity: str | None,
) -> Wishes | None:
    """Return what the options ask of a plan; None where nothing is asked.

    Raises
    ------
    TVMQuantError
        When an option is not understood.
    """
    asked = (latency, size, bops, choices, sensitivity)
    if not (any(option is not None for option in asked) or pins or free_ends):
        return None
    from tvmquant.allocation.budget import Budget
    from tvmquant.bit_choice import DEFAULT_CHOICES, W8A8, BitChoice
    from tvmquant.mixed_precision.wishes import Wishes
    from tvmquant.sensitivity.methods import check_method

    for quantity, text in (("latency", latency), ("size", size), ("bops", bops)):
        if text is not None:
            Budget.parse(text, quantity)
    method, given = "hessian" if sensitivity is None else sensitivity, None
    if method.endswith(".json"):
        from tvmquant.sensitivity import Sensitivity

        given = Sensitivity.load(method)
        method = given.method
    else:
        check_method(method)
    pinned: dict[str, BitChoice] = {}
    for pin in pins or []:
        layer, equals, choice = pin.rpartition("=")
        if not equals or not layer:
            raise AllocationError(
                f"--pin {pin!r} is not understood; expected LAYER=CHOICE such as /conv1/Conv=w8a8"
            )
        taken = BitChoice.parse(choice)
        if pinned.setdefault(layer, taken) != taken:
            raise AllocationError(
                f"--pin gives layer {layer!r} both {pinned[layer]} and {taken}; leave out one"
            )
    wanted = DEFAULT_CHOICES if given is None else given.choices
    if choices is not None:
        wanted = tuple(map(BitChoice.parse, choices.split(",")))
    return Wishes(
        latency=latency,
        size=size,
        bops=bops,
        choices=tuple(dict.fromkeys([W8A8, *wanted])),
        pinned=pinned,
        pin_ends=not free_ends,
        sensitivity=method,
        given=given,
    )


def parse_reconstruction(asked: bool, recipe: str | None) -> bool | str:
    """Return what `tvmquant.compile_onnx` takes as ``reconstruct``.

    Raises
    ------
    TrainingError
        When there is a recipe that nothing asks for.
    """
    if recipe is not None and not asked:
        raise TrainingError(f"--recipe {recipe}: says how to reconstruct; pass --reconstruct too")
    return asked if recipe is None else recipe


def parse_time(option: str, text: str) -> float:
    """Return a time such as ``90s``, ``10m`` or ``1h`` in seconds.

    Raises
    ------
    TuningError
        When it is not of that form, or zero.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh]?)", text.strip())
    seconds = float(match.group(1)) * _UNITS[match.group(2)] if match else 0.0
    if seconds <= 0:
        raise TuningError(
            f"{option} {text!r} is not understood; expected a time such as 90s or 10m"
        )
    return seconds


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
