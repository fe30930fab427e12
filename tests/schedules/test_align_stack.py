"""Kernels ask for their frame's address, in their own function and in each task's."""

from __future__ import annotations

import re

import pytest
import tvm
from tvm.script import tirx as T  # noqa: N812

from tests.schedules.kernel_testing import make_target
from tvmquant.machine import Machine
from tvmquant.schedules import depthwise_conv2d
from tvmquant.schedules.align_stack import align_stack
from tvmquant.schedules.epilogue import Epilogue


@T.prim_func(private=True, s_tir=True)
def before(x: T.Buffer((64, 128), "float32"), y: T.Buffer((64, 128), "float32")) -> None:
    for i in T.parallel(64):
        for j in range(128):
            with T.sblock("y"):
                vi, vj = T.axis.remap("SS", [i, j])
                y[vi, vj] = T.exp(x[vi, vj])


@T.prim_func(private=True, s_tir=True)
def expected(x: T.Buffer((64, 128), "float32"), y: T.Buffer((64, 128), "float32")) -> None:
    T.call_llvm_intrin(
        "void",
        "llvm.prefetch.p0",
        T.call_llvm_intrin("handle", "llvm.frameaddress.p0", 0),
        0,
        3,
        1,
    )
    for i in T.parallel(64):
        T.call_llvm_intrin(
            "void",
            "llvm.prefetch.p0",
            T.call_llvm_intrin("handle", "llvm.frameaddress.p0", 0),
            0,
            3,
            1,
        )
        for j in range(128):
            with T.sblock("y"):
                vi, vj = T.axis.remap("SS", [i, j])
                y[vi, vj] = T.exp(x[vi, vj])


def test_hints_are_put_into_the_kernel_and_its_parallel_loops():
    tvm.ir.assert_structural_equal(align_stack(before), expected)


@pytest.mark.parametrize(("processor", "size"), [("haswell", 32), ("skylake-avx512", 64)])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_kernel_that_keeps_vectors_on_the_stack_aligns_them(processor, size, threads):
    spec = depthwise_conv2d.DepthwiseConv2DSpec(
        1, 28, 28, 64, 1, (5, 5), (1, 1), (2, 2, 2, 2), epilogue=Epilogue("int32", "uint8", 0, 255)
    )
    target = make_target(processor)
    kernel = depthwise_conv2d.kernel(
        spec, depthwise_conv2d.default_tiling(spec, Machine.of(target, threads))
    ).with_attr("global_symbol", "main")
    module = tvm.IRModule({"main": kernel})
    assembly = tvm.compile(module, target=target).mod.inspect_source("asm")
    assert re.search(rf"and[lq]\s+\$-{size}, %[er]sp", assembly)
