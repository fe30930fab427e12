"""Vectorised loops whose lanes do not divide their extent."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import te
from tvm.s_tir import Schedule
from tvm.script import tirx as T  # noqa: N812

from tests.schedules.kernel_testing import make_target, run
from tvmquant.schedules.loops import overlap_tails, overlapping_lanes, vectorize


@pytest.mark.parametrize(
    ("extent", "lanes"), [(1, 1), (3, 2), (16, 16), (24, 16), (31, 16), (33, 16), (48, 16), (5, 4)]
)
def test_fewest_steps_then_least_repetition(extent: int, lanes: int) -> None:
    assert overlapping_lanes(extent, 16) == lanes


def test_the_last_step_ends_with_the_tensor() -> None:
    @T.prim_func(s_tir=True)
    def before(x: T.Buffer((19,), "float32"), y: T.Buffer((19,), "float32")) -> None:
        for step in range(3):
            for lane in T.vectorized(8):
                with T.sblock("y"):
                    v = T.axis.spatial(19, step * 8 + lane)
                    T.where(step * 8 + lane < 19)
                    y[v] = x[v] * T.float32(2)

    @T.prim_func(s_tir=True)
    def expected(x: T.Buffer((19,), "float32"), y: T.Buffer((19,), "float32")) -> None:
        for step in range(3):
            for lane in T.vectorized(8):
                with T.sblock("y"):
                    v = T.axis.spatial(19, T.min(step * 8, 11) + lane)
                    y[v] = x[v] * T.float32(2)

    before, expected = (f.with_attr("global_symbol", "main") for f in (before, expected))
    tvm.ir.assert_structural_equal(overlap_tails(before), expected)
    tvm.ir.assert_structural_equal(overlap_tails(expected), expected)


def test_sums_are_not_added_up_twice() -> None:
    @T.prim_func(s_tir=True)
    def total(x: T.Buffer((5, 19), "float32"), y: T.Buffer((19,), "float32")) -> None:
        for k, step in T.grid(5, 3):
            for lane in T.vectorized(8):
                with T.sblock("y"):
                    vk = T.axis.reduce(5, k)
                    v = T.axis.spatial(19, step * 8 + lane)
                    T.where(step * 8 + lane < 19)
                    with T.init():
                        y[v] = T.float32(0)
                    y[v] = y[v] + x[vk, v]

    tvm.ir.assert_structural_equal(overlap_tails(total), total)


@pytest.mark.parametrize("parallel", [False, True])
def test_several_rows_with_tails(parallel: bool) -> None:
    x = te.placeholder((3, 5, 19), name="x")
    out = te.compute((3, 5, 19), lambda i, j, k: x[i, j, k] + 1.0, name="out")
    sch = Schedule(te.create_prim_func([x, out]))
    *outer, inner = sch.get_loops(sch.get_sblock("out"))
    fused = sch.fuse(*outer, vectorize(sch, inner, 8))
    if parallel:
        sch.parallel(fused)
    function = overlap_tails(sch.mod["main"])
    assert "T.where" not in function.script()
    values = np.arange(3 * 5 * 19, dtype=np.float32).reshape(3, 5, 19)
    np.testing.assert_array_equal(run(function, make_target("haswell"), [values]), values + 1)
