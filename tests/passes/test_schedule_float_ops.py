"""Schedules of what TVM legalizes: one parallel, vectorized pass; our own kernels untouched."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.s_tir import Schedule
from tvm.script import ir as I  # noqa: N812
from tvm.script import tirx as T  # noqa: N812

from tests.passes.graphs import graph, normal
from tests.schedules.kernel_testing import NATIVE, make_target, run
from tvmquant.machine import Machine
from tvmquant.passes.schedule_float_ops import ScheduleFloatOps


@I.ir_module
class Before:
    @T.prim_func(private=True, s_tir=True)
    def main(x: T.Buffer((64, 128), "float32"), y: T.Buffer((64, 128), "float32")) -> None:
        t = T.sblock_alloc_buffer((64, 128))
        for i, j in T.grid(64, 128):
            with T.sblock("t"):
                vi, vj = T.axis.remap("SS", [i, j])
                t[vi, vj] = x[vi, vj] + T.float32(3)
        for i, j in T.grid(64, 128):
            with T.sblock("y"):
                vi, vj = T.axis.remap("SS", [i, j])
                y[vi, vj] = T.sqrt(t[vi, vj])


@I.ir_module
class Expected:
    @T.prim_func(private=True, s_tir=True)
    def main(x: T.Buffer((64, 128), "float32"), y: T.Buffer((64, 128), "float32")) -> None:
        for i in T.parallel(64):
            for j in range(16):
                for lane in T.vectorized(8):
                    with T.sblock("y"):
                        vi = T.axis.spatial(64, i)
                        vj = T.axis.spatial(128, j * 8 + lane)
                        y[vi, vj] = T.sqrt(x[vi, vj] + T.float32(3))


def scheduled(module: tvm.IRModule, threads: int = 2) -> tvm.IRModule:
    return ScheduleFloatOps(Machine.of("haswell", threads))(module)


def test_an_elementwise_chain_is_one_parallel_pass() -> None:
    after = scheduled(Before)
    tvm.ir.assert_structural_equal(after["main"], Expected["main"])


def test_one_thread_starts_no_pool() -> None:
    text = scheduled(Before, threads=1).script()
    assert "T.vectorized(8)" in text
    assert "T.parallel" not in text


def test_kernels_of_ours_are_left_alone() -> None:
    ours = tvm.IRModule({"main": Before["main"].with_attr("tvmquant.kernel", "exp")})
    tvm.ir.assert_structural_equal(scheduled(ours), ours)


def test_what_two_blocks_read_is_computed_once() -> None:
    @I.ir_module
    class Shared:
        @T.prim_func(private=True, s_tir=True)
        def main(
            x: T.Buffer((64, 128), "float32"),
            y: T.Buffer((64, 128), "float32"),
            z: T.Buffer((64, 128), "float32"),
        ) -> None:
            t = T.sblock_alloc_buffer((64, 128))
            for i, j in T.grid(64, 128):
                with T.sblock("t"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    t[vi, vj] = T.sqrt(x[vi, vj])
            for i, j in T.grid(64, 128):
                with T.sblock("y"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    y[vi, vj] = t[vi, vj] + T.float32(1)
            for i, j in T.grid(64, 128):
                with T.sblock("z"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    z[vi, vj] = t[vi, vj] + T.float32(2)

    assert scheduled(Shared).script().count("T.sqrt") == 1


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("target", ["x86-64", "haswell", "znver4"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 9001), (1, 3, 61, 61), (7, 1, 1027), (8193, 1)])
def test_any_extent_compiles(shape: tuple[int, ...], target: str, threads: int) -> None:
    """With tails, with extents of 1 outside, and with sources that are computed (in 64 bits)."""

    def body(emit: Any, x: relax.Var) -> relax.Var:
        doubled = relax.op.flip(emit(relax.op.exp(x)), 0)
        return emit(relax.op.reshape(emit(doubled), (math.prod(shape),)))

    legal = relax.transform.LegalizeOps()(graph(body, shape))
    compiled = ScheduleFloatOps(Machine.of(make_target(target), threads))(legal)
    tvm.compile(compiled, target=make_target(target))


@pytest.mark.parametrize("target", ["haswell", "znver4"])
@pytest.mark.parametrize("width", [9, 22, 65])
def test_linear_resize_to_any_width(width: int, target: str) -> None:
    def body(emit: Any, x: relax.Var) -> relax.Var:
        size = relax.ShapeExpr([9, width])
        return emit(relax.op.image.resize2d(x, size, layout="NCHW", method="linear"))

    legal = relax.transform.LegalizeOps()(graph(body, (1, 2, 5, 7)))
    tvm.compile(
        ScheduleFloatOps(Machine.of(make_target(target), 1))(legal), target=make_target(target)
    )


@I.ir_module
class BroadcastTotals:
    """Sums that a second block divides and a third reads five times."""

    @T.prim_func(private=True, s_tir=True)
    def main(
        x: T.Buffer((3, 6), "float32"), y: T.Buffer((5, 6), "float32"), z: T.Buffer((5, 6))
    ) -> None:
        s = T.sblock_alloc_buffer((1, 6))
        t = T.sblock_alloc_buffer((1, 6))
        for i, j, k in T.grid(1, 6, 3):
            with T.sblock("s"):
                vi, vj, vk = T.axis.remap("SSR", [i, j, k])
                with T.init():
                    s[vi, vj] = T.float32(0)
                s[vi, vj] = s[vi, vj] + x[vk, vj]
        for i, j in T.grid(1, 6):
            with T.sblock("t"):
                vi, vj = T.axis.remap("SS", [i, j])
                t[vi, vj] = s[vi, vj] / T.float32(3)
        for i, j in T.grid(5, 6):
            with T.sblock("z"):
                vi, vj = T.axis.remap("SS", [i, j])
                z[vi, vj] = t[0, vj] * y[vi, vj]


def test_no_element_of_an_intermediate_is_computed_twice() -> None:
    """TVM may let ``t`` lie where ``s`` did: a repeated step would divide twice."""
    x, y = normal(3, 6), normal(5, 6)
    target = make_target(NATIVE)
    kernel = ScheduleFloatOps(Machine.of(target, 1))(BroadcastTotals)["main"]
    np.testing.assert_allclose(run(kernel, target, [x, y]), x.mean(0) * y, rtol=1e-5)


@I.ir_module
class OneElement:
    @T.prim_func(private=True, s_tir=True)
    def main(x: T.Buffer((), "float32"), y: T.Buffer((), "float32")) -> None:
        with T.sblock("y"):
            T.axis.spatial(1, T.int32(0))
            T.reads(x[()])
            T.writes(y[()])
            y[()] = T.sqrt(x[()])


def test_a_single_element_has_no_loop_to_schedule() -> None:
    assert "T.sqrt" in scheduled(OneElement).script()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("columns", [16, 64, 197])
def test_a_product_of_tensors_goes_through_rows_of_the_second(columns: int, threads: int) -> None:
    """Of 197 columns the products took 56 times as long one after another."""
    shapes = ((2, 50, 24), (2, 24, columns))
    module = graph(lambda emit, a, b: emit(relax.op.matmul(a, b)), *shapes)
    module = relax.transform.LegalizeOps()(module)
    after = ScheduleFloatOps(Machine.of(make_target(NATIVE), threads))(module)
    (kernel,) = (f for v, f in after.functions.items() if v.name_hint != "main")
    sch = Schedule(kernel.with_attr("global_symbol", "main"))
    assert int(sch.get(sch.get_loops(sch.get_sblock("matmul_update"))[-1]).extent) == columns
    a, b = (normal(*shape) for shape in shapes)
    result = run(kernel, make_target(NATIVE), [a, b])
    np.testing.assert_allclose(result, a @ b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["scatter_elements", "scatter_nd"])
def test_loops_that_tvm_wrote_by_hand_are_serial(name: str) -> None:
    """TVM makes loops over a few elements parallel, and marks them by a pragma LLVM warns of."""
    x, updates = normal(3, 4), normal(1, 4)
    indices = relax.const([[2, 0, 1, 2]] if name == "scatter_elements" else [[1]], "int64")
    scatter = getattr(relax.op, name)
    module = relax.transform.LegalizeOps()(
        graph(lambda emit, x, y: emit(scatter(x, indices, y)), x.shape, updates.shape)
    )
    assert "pragma_scope" in module.script()
    after = scheduled(module)
    assert "pragma_scope" not in after.script()
    assert "parallel" not in after.script()
    machines = [relax.VirtualMachine(tvm.compile(m, "llvm"), tvm.cpu()) for m in (module, after)]
    inputs = [tvm.runtime.tensor(array) for array in (x, updates)]
    before, now = (machine["main"](*inputs).numpy() for machine in machines)
    np.testing.assert_array_equal(before, now)
