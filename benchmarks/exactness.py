"""Whether one network computes the same numbers everywhere: exact twin, numpy oracle, library."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import latency
from benchmarks.noise import sqnr_db
from benchmarks.rows import Row, RowMaker, machine_facts, target_rounding
from tvmquant.bit_choice import BitChoice
from tvmquant.progress import Stage

# Images that are compared; the ranges come from all that `latency.prepare` gives.
COMPARED = 2


def run(
    models: Sequence[str],
    *,
    data: Path,
    stage: Stage,
    choices: Sequence[BitChoice],
    threads: int,
    target: str = "native",
    image_size: int | None = None,
) -> list[Row]:
    """Compare what each network computes in torch, in numpy and in its library.

    Parameters
    ----------
    models, data, stage, image_size
        As of `benchmarks.latency.run`.
    choices : sequence of BitChoice
        Of all layers that allow them, but the ends.
    threads : int
    target : str
        As of `tvmquant.build`.

    Returns
    -------
    list of Row
        ``differing``: numbers of the outputs of the exact twin, and of the library, that are not
        the oracle's, bit for bit; ``sqnr_db``: how close the twin's fake-quantized float mode is to
        its exact one.

    Raises
    ------
    DataError
        When a model is unknown, or a file is not there.
    """
    for name in models:
        latency.check_model(name, data)
    make = RowMaker("exactness", threads, machine_facts(target))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="tvmquant-") as scratch:
        for name in models:
            onnx, images = latency.prepare(name, data, Path(scratch), image_size)
            for choice in choices:
                with stage(f"{name}: {choice}"):
                    rows += _compared(make, name, onnx, images, choice, target)
    return rows


def _compared(
    make: RowMaker, name: str, onnx: Path, images: Any, choice: BitChoice, target: str
) -> Iterator[Row]:
    import torch

    import tvmquant
    from tvmquant.layers import quantizable_layers, uniform_choices
    from tvmquant.quantization import apply_calibration
    from tvmquant.twin import Twin

    graph = tvmquant.load_onnx(onnx)
    calibration = tvmquant.calibrate(graph, images)
    rounding: dict[str, Any] = {
        "choices": uniform_choices(quantizable_layers(graph), choice),
        **target_rounding(target),
    }
    few = np.ascontiguousarray(images[:COMPARED])
    twin = Twin(apply_calibration(graph, calibration, **rounding).module, mode="exact")
    exact = twin(torch.from_numpy(few)).numpy()
    twin.mode = "quantized"
    with torch.inference_mode():
        approximate = twin(torch.from_numpy(few)).numpy()
    integer = tvmquant.quantize(graph, calibration, **rounding)
    (oracle,) = tvmquant.simulate(integer, few)
    with tempfile.TemporaryDirectory(prefix="tvmquant-") as folder:
        out = Path(folder, "library")
        tvmquant.build(integer, target=target, out=out, threads=make.threads, batch=len(few))
        computed = tvmquant.load(out)(few)
    for config, found in (("twin", exact), ("library", computed)):
        differing = int(np.count_nonzero(found != oracle))
        yield make(name, f"{config}-{choice}", "differing", differing, "", numbers=oracle.size)
    yield make(name, f"fake-quant-{choice}", "sqnr_db", sqnr_db(exact, approximate), "dB")
