"""Rows of ``kernels --binary``, and that its peaks keep all that they count."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from benchmarks import binary_kernels, kernels
from tests.schedules.kernel_testing import build, make_target, run
from tvmquant.bit_choice import BitChoice
from tvmquant.schedules import conv2d, isa
from tvmquant.schedules.isa.x86 import LOOKUP_256


def test_rows_relate_layers_to_int8_and_to_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_NUM_THREADS", "1")
    choices = tuple(map(BitChoice.parse, ("w1a1", "w1a2", "w4a4")))
    monkeypatch.setattr(binary_kernels, "CHOICES", choices)
    spec = conv2d.Conv2DSpec(1, 6, 6, 32, 32, (3, 3), padding=(1, 1, 1, 1))
    chosen = [
        kernels.Layer("a", spec, 1),
        kernels.Layer("b", dataclasses.replace(spec, channels=64), 1),
    ]
    found = binary_kernels.run(threads=1, repeats=3, chosen=chosen, target="llvm -mcpu=haswell")
    metrics = ("gmacs_per_s", "ratio_to_int8", "fraction_of_peak")
    named = [(choice, metric) for choice in ("w1a1", "w1a2") for metric in metrics]
    named += [("w4a4", "ratio_to_int8"), ("w2a2", "most_ratio_to_int8")]
    for choice, metric in named:
        values = {
            row["layer"]: float(row["value"] or 0)
            for row in found
            if (row["config"], row["metric"]) == (f"tvmquant-{choice}", metric)
        }
        assert set(values) == {"a", "b", "geomean"}
        assert min(values.values()) > 0
        assert values["geomean"] == pytest.approx(math.sqrt(values["a"] * values["b"]))
    peaks = [row["layer"] for row in found if row["config"] == "peak"]
    assert peaks == ["peak", "xor and popcount"]


def test_the_layers_have_whole_words() -> None:
    layers = binary_kernels.layers()
    assert len({layer.name for layer in layers}) == len(layers) == 6
    assert all(layer.spec.channels >= 128 for layer in layers)


@pytest.mark.parametrize(
    ("nest", "tile", "target", "mnemonic", "each"),
    [
        (binary_kernels.nest_of(LOOKUP_256), (4, 2), "haswell", "vpshufb", 1),
        (binary_kernels.bytes_nest(LOOKUP_256), (4, 2), "haswell", "vpshufb", 2),
        (
            binary_kernels.nest_of(isa.binary_dot_products(make_target("znver4"))[0]),
            (4, 4), "znver4", "vpopcntd", 1,
        ),
    ],
    ids=["looked up", "bytes", "words"],
)  # fmt: skip
def test_the_loop_of_a_peak_counts_every_vector(
    nest: binary_kernels.Nest, tile: tuple[int, int], target: str, mnemonic: str, each: int
) -> None:
    kernel = binary_kernels.nest_kernel(nest, tile, 1)
    lines = str(build(kernel, make_target(target)).inspect_source("asm")).splitlines()
    found = [line for line in lines if f"\t{mnemonic}\t" in line]
    assert found
    assert len(found) % (each * math.prod(tile)) == 0


def test_peaks_count_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binary_kernels, "REPEATS", 1)
    rng = np.random.default_rng(0)
    nest = binary_kernels.nest_of(LOOKUP_256)
    kernel = binary_kernels.nest_kernel(nest, (4, 2), 1)
    x = rng.integers(0, 16, (1, binary_kernels.STEPS, 4), np.uint8)
    w = rng.integers(0, 16, (1, binary_kernels.STEPS, 2, 32), np.uint8)
    found = run(kernel, make_target("haswell"), [conv2d.counts(), x * 16, w])
    differing = np.unpackbits((x[..., None, None] ^ w[:, :, None])[..., None], axis=-1)
    np.testing.assert_array_equal(found, differing.sum(axis=(1, -1)))
