"""Products that kernels leave out: nothing that counts, and as many as the cost model says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm_ffi
from tvm import tirx

from tests.pairwise import pairwise
from tests.schedules.conv2d_cases import NARROW, case
from tests.schedules.kernel_testing import make_target, run
from tvmquant.machine import Machine
from tvmquant.schedules import conv2d, skip_padding
from tvmquant.schedules.conv2d import Conv2DSpec, Tiling
from tvmquant.schedules.conv2d_spec import Extents
from tvmquant.schedules.isa.x86 import PMADDUBSW_256, PMADDWD_256
from tvmquant.schedules.loops import round_up

SPECS = {
    "3x3": Conv2DSpec(1, 7, 7, 16, 32, (3, 3), (1, 1), (1, 1, 1, 1), epilogue=NARROW),
    "strided": Conv2DSpec(2, 9, 8, 16, 24, (3, 3), (2, 2), (1, 1, 1, 1), epilogue=NARROW),
    "one side": Conv2DSpec(1, 6, 9, 16, 16, (2, 4), (1, 1), (0, 3, 1, 0), epilogue=NARROW),
    "row kernel": Conv2DSpec(1, 5, 9, 16, 16, (1, 7), (1, 1), (0, 3, 0, 3), epilogue=NARROW),
    "column kernel": Conv2DSpec(1, 9, 5, 16, 16, (7, 1), (1, 1), (3, 0, 3, 0), epilogue=NARROW),
    "dilated": Conv2DSpec(
        1, 9, 9, 16, 16, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), epilogue=NARROW
    ),
    "grouped": Conv2DSpec(
        1, 8, 7, 32, 32, (3, 3), (1, 1), (1, 1, 1, 1), groups=2, epilogue=NARROW
    ),
    "window larger than image": Conv2DSpec(
        1, 2, 2, 16, 16, (5, 5), (1, 1), (2, 2, 2, 2), epilogue=NARROW
    ),
    "no padding": Conv2DSpec(1, 9, 9, 16, 16, (3, 3), epilogue=NARROW),
    "other zero point": Conv2DSpec(
        1, 7, 7, 16, 16, (3, 3), (1, 1), (1, 1, 1, 1), input_zero_point=3, epilogue=NARROW
    ),
}  # fmt: skip

# how operands are multiplied: the fields of a spec, and of a tiling
WORDS = ({}, {"dot": PMADDWD_256})
PRODUCTS = {
    "words": WORDS,
    "bytes": ({"chain": 1}, {"dot": PMADDUBSW_256}),
    "nibbles in chains": (
        {"chain": 2, "w_bits": 4}, {"dot": PMADDUBSW_256, "chain": 2},
    ),
    "nibbles in registers": (
        {"chain": 1, "w_bits": 4}, {"dot": PMADDUBSW_256, "unpack": "registers"},
    ),
    "chains in registers": (
        {"chain": 4, "w_bits": 4},
        {"dot": PMADDUBSW_256, "chain": 4, "unpack": "registers"},
    ),
}  # fmt: skip


def tiling_of(spec: Conv2DSpec, columns: int, *, flat: bool, **fields: object) -> Tiling:
    rows = 1 if flat else 2
    width = spec.out_extents(flat=flat)[1]
    tiling = Tiling(PMADDWD_256, columns, 1, rows, round_up(width, columns), "rows", flat=flat)
    return replace(tiling, **fields)


@pytest.fixture
def always_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let kernels ask wherever there is something to ask for."""
    for name in ("BEGINNING", "FINDING", "ASKING"):
        monkeypatch.setattr(skip_padding, name, 0.0)
    monkeypatch.setattr(skip_padding, "LEAST_SHARE", 1e-9)
    skip_padding._shares.cache_clear()
    yield
    skip_padding._shares.cache_clear()


@pytest.mark.usefixtures("always_asking")
@pytest.mark.parametrize(
    *pairwise(name=SPECS, products=PRODUCTS, flat=[False, True], columns=[3, 4])
)
def test_what_is_left_out_is_zero(name: str, products: str, flat: bool, columns: int) -> None:
    changed, fields = PRODUCTS[products]
    spec = replace(SPECS[name], **changed)
    tiling = tiling_of(spec, columns, flat=flat, **fields)
    inputs, expected = case(spec, tiling)
    actual = run(conv2d.kernel(spec, tiling), make_target("haswell"), inputs)
    np.testing.assert_array_equal(actual, expected)


def counted(spec: Conv2DSpec, tiling: Tiling) -> float:
    """Count what a kernel that asks multiplies, tile by tile, as a share of all."""
    e = Extents.of(spec, tiling)
    taps_apart = e.tap_loop > 1
    done = total = 0
    for h in range(e.rows):
        for first in range(0, e.columns, tiling.column_tile):
            pixels = range(first, first + tiling.column_tile)
            places = [divmod(p, spec.out_width) if tiling.flat else (h, p) for p in pixels]
            for ry in range(spec.run_rows):
                rows = [p[0] * spec.strides[0] + ry * spec.dilation[0] - spec.padding[0]
                        for p in places]  # fmt: skip
                zeros = spec.skips_padding
                inside = [
                    not zeros or ((r >= 0 or not spec.padding[0])
                    and (r < spec.height or not spec.padding[2])) for r in rows
                ]  # fmt: skip
                for tap in range(e.tap_loop):
                    for (row, column), counts in zip(places, inside, strict=True):
                        read = column * spec.strides[1] + tap * spec.dilation[1] - spec.padding[1]
                        if zeros and taps_apart:
                            counts &= read >= 0 or not spec.padding[1]
                            counts &= read < spec.width or not spec.padding[3]
                        if not tiling.flat:
                            counts &= column < spec.out_width and row < spec.out_height
                        done += counts
                        total += 1
    return done / total


@pytest.mark.usefixtures("always_asking")
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_share_is_what_counts(name: str, flat: bool) -> None:
    spec = SPECS[name]
    for columns in (1, 3, 4, 5):
        tiling = tiling_of(spec, columns, flat=flat)
        assert skip_padding.share(spec, tiling) == pytest.approx(counted(spec, tiling))


def conditions(spec: Conv2DSpec, tiling: Tiling) -> int:
    found: list[tirx.IfThenElse] = []
    body = conv2d.kernel(spec, tiling).body
    tvm_ffi.structural_walk(body, [(tirx.IfThenElse, found.append)], order="pre")
    return len(found)


def test_kernels_ask_where_it_pays() -> None:
    """Rows are skipped at no cost; loops that ask suit small images of many channels."""
    small = Conv2DSpec(1, 7, 7, 512, 64, (3, 3), (1, 1), (1, 1, 1, 1))
    large = replace(small, height=56, width=56, channels=16)
    plain = replace(large, input_zero_point=1)
    found = [conditions(s, tiling_of(s, 4, flat=False, row_block=7)) for s in (small, large, plain)]
    assert found == [3, 1, 0]
    chains = tiling_of(small, 4, flat=False, row_block=7, dot=PMADDUBSW_256, chain=4)
    assert conditions(replace(small, chain=4), chains) == 1


def test_small_images_are_cut_to_skip_most() -> None:
    target = make_target("haswell")
    spec = Conv2DSpec(1, 14, 14, 256, 256, (3, 3), (1, 1), (1, 1, 1, 1), chain=1)
    assert skip_padding.share(spec, conv2d.target_tiling(spec, Machine.of(target, 1))) < 0.92
    apart = replace(spec, input_zero_point=1)
    assert skip_padding.share(apart, conv2d.target_tiling(apart, Machine.of(target, 1))) == 1.0
