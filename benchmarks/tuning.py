"""What tuning gains on a network, how long it takes, and how well its measurements repeat."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import models as networks
from benchmarks.rows import Row, RowMaker, machine_facts, target_rounding
from tvmquant.bit_choice import W8A8
from tvmquant.progress import Stage

IMAGES = 8


def run(
    model: str,
    *,
    stage: Stage,
    target: str,
    threads: int,
    seconds: float,
    repeats: int,
    image_size: int | None,
) -> list[Row]:
    """Tune a random network at w8a8 and time it beside the untuned one, by turns.

    Parameters
    ----------
    model : str
        Of `benchmarks.models`.
    stage : callable
        Called with the name of each stage; see `tvmquant.progress.Stage`.
    target, threads
        As of `tvmquant.build`.
    seconds : float
        Budget of tuning.
    repeats : int
        Timed runs of each library.
    image_size : int, optional
        Height and width of the images.

    Returns
    -------
    list of Row
        Configs ``default`` and ``tuned`` with ``latency_ms``; ``tuned`` with ``gain`` (median time
        of the default over that of the tuned), ``gain_of_min``, ``tuning_s``, ``trials``; config
        ``table`` with ``repeatability``: by how much two measurements of a layer's default differ,
        median over the layers.
    """
    import tvmquant
    from tvmquant.benchmark import random_inputs, runner

    make = RowMaker("tuning", threads, machine_facts(target))
    rounding = target_rounding(target)
    with tempfile.TemporaryDirectory(prefix="tvmquant-") as scratch:
        folder = Path(scratch)
        onnx = networks.export(model, folder / f"{model}.onnx", image_size=image_size)
        graph = tvmquant.load_onnx(onnx)
        images = networks.synthetic_images(IMAGES, networks.input_shape(model, image_size), seed=1)
        with stage(f"{model}: calibrate") as progress:
            calibration = tvmquant.calibrate(graph, images, progress=progress)

        def tune(name: str, **budget: Any) -> Any:
            return tvmquant.tune(
                graph, folder / name, target=target, threads=threads, choices=[W8A8],
                calibration=calibration, quantize_options=rounding, **budget,
            )  # fmt: skip

        with stage(f"{model}: measure the defaults twice"):
            first, second = (_defaults(tune(name, trials=1)) for name in ("once", "again"))
        with stage(f"{model}: tune") as progress:
            tuned = tune(
                "table",
                seconds=seconds,
                progress=lambda state: progress(round(state.elapsed), round(seconds)),
            )
        quantized = tvmquant.quantize(graph, calibration, **rounding)
        runners = {}
        for config, tilings in (("default", None), ("tuned", tuned.database.tilings())):
            with stage(f"{model}: build {config}"):
                tvmquant.build(
                    quantized, target=target, out=folder / config, threads=threads,
                    tilings=tilings,
                )  # fmt: skip
            library = tvmquant.load(folder / config)
            runners[config] = runner(library, random_inputs(library.inputs))
        with stage(f"{model}: measure") as progress:
            found = tvmquant.compare(runners, repeats=repeats, progress=progress)
    differences = [abs(first[layer] / second[layer] - 1.0) for layer in first]
    default, best = found["default"], found["tuned"]
    return [
        make(model, "default", "latency_ms", default.median_ms, "ms"),
        make(model, "tuned", "latency_ms", best.median_ms, "ms"),
        make(model, "tuned", "gain", default.median_ms / best.median_ms, "x"),
        make(model, "tuned", "gain_of_min", default.min_ms / best.min_ms, "x"),
        make(model, "tuned", "tuning_s", tuned.tuning.seconds, "s"),
        make(model, "tuned", "trials", tuned.tuning.trials, ""),
        make(model, "table", "repeatability", 100.0 * float(np.median(differences)), "%"),
    ]


def _defaults(tuned: Any) -> dict[str, float]:
    return {entry.layer: entry.default_ms for entry in tuned.table.entries}
