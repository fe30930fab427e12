"""Kernels that write their part of a concatenation in place: the same integers, fewer copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax, tirx
from tvm.script import ir as I  # noqa: N812
from tvm.script import relax as R  # noqa: N812
from tvm.script import tirx as T  # noqa: N812

from tests.passes.graphs import const, graph, normal, quantize
from tests.schedules.kernel_testing import EXECUTED, make_target
from tvmquant.ir.rewriter import bindings_of
from tvmquant.machine import Machine
from tvmquant.passes import pipeline
from tvmquant.passes.convert_layout import ConvertLayout
from tvmquant.passes.fuse_epilogue import FuseEpilogue
from tvmquant.passes.place_concats import PlaceConcats, place
from tvmquant.simulator import simulate

op, nn = relax.op, relax.op.nn
SHAPE = (1, 6, 8, 8)
Emit = Callable[..., Any]


def conv(emit: Emit, x: Any, inputs: int, outputs: int, kernel: int, name: str) -> Any:
    weight = const(normal(outputs, inputs, kernel, kernel, scale=0.2, seed=outputs))
    return emit(nn.relu(emit(nn.conv2d(x, weight, padding=kernel // 2), name)))


def branches(emit: Emit, x: Any) -> Any:
    """A fire module with a pool beside it: every part has one reader."""
    squeezed = conv(emit, x, 6, 8, 1, "squeeze")
    parts = [
        conv(emit, squeezed, 8, 16, 1, "e1"),
        conv(emit, squeezed, 8, 24, 3, "e3"),
        emit(nn.max_pool2d(squeezed, (3, 3), padding=1), "pool"),
    ]
    return conv(emit, emit(op.concat(parts, 1), "cat"), 48, 8, 1, "last")


def dense_block(emit: Emit, x: Any) -> Any:
    """What every layer computes is read by all that follow."""
    first = conv(emit, x, 6, 8, 3, "first")
    second = conv(emit, first, 8, 12, 3, "second")
    both = emit(op.concat([first, second], 1), "both")
    return conv(emit, both, 20, 8, 1, "last")


def shared(emit: Emit, x: Any) -> Any:
    """The larger part is read elsewhere too."""
    first = conv(emit, x, 6, 32, 1, "first")
    second = conv(emit, first, 32, 8, 1, "second")
    both = emit(op.concat([first, second], 1), "both")
    return conv(emit, both, 40, 8, 1, "last")


def twice(emit: Emit, x: Any) -> Any:
    first = conv(emit, x, 6, 8, 1, "first")
    return conv(emit, emit(op.concat([first, first], 1), "both"), 16, 8, 1, "last")


def rows(emit: Emit, x: Any) -> Any:
    """Of another axis than the channels."""
    parts = [conv(emit, x, 6, 8, 1, "upper"), conv(emit, x, 6, 8, 3, "lower")]
    return conv(emit, emit(op.concat(parts, 2), "both"), 8, 8, 1, "last")


def nested(emit: Emit, x: Any) -> Any:
    inner = emit(op.concat([conv(emit, x, 6, 8, 1, "a"), conv(emit, x, 6, 16, 3, "b")], 1), "in")
    outer = emit(op.concat([conv(emit, x, 6, 24, 1, "c"), inner], 1), "out")
    return conv(emit, outer, 48, 8, 1, "last")


NETWORKS = {
    branches: (["into0of48", "into16of48", "into40of48"], 0),
    dense_block: (["into8of20", "into0of20"], 0),
    shared: ([], 1),
    twice: ([], 1),
    rows: ([], 1),
    nested: (["into0of24", "into8of24", "into0of48", "into24of48"], 0),
}


def integers(network: Callable[[Emit, Any], Any]) -> tuple[tvm.IRModule, Any]:
    """Return a network at L2 with an input."""
    x = normal(*SHAPE)
    return ConvertLayout()(FuseEpilogue()(quantize(graph(network, SHAPE), [x]).integer)), x


def called(module: tvm.IRModule) -> list[str]:
    return [
        str(call.args[0].name_hint)
        for _, call in bindings_of(module["main"])
        if isinstance(call, relax.Call) and isinstance(call.args[0], tvm.ir.GlobalVar)
    ]


@pytest.mark.parametrize("processor", EXECUTED)
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_the_integers_stay(network: Callable[[Emit, Any], Any], processor: str) -> None:
    module, x = integers(network)
    target = make_target(processor)
    lowered = pipeline.lower(module, Machine.of(target, 2), 1)
    names = called(lowered)
    parts, concats = NETWORKS[network]
    assert [name.rpartition("_")[2] for name in names if "_into" in name] == parts
    assert sum(name.startswith("concat") and "_into" not in name for name in names) == concats
    with target:
        executable = relax.build(
            lowered, target, relax_pipeline=pipeline.virtual_machine_pipeline()
        )
    machine = relax.VirtualMachine(executable, tvm.cpu())
    for _ in range(2):  # memory is used again
        actual = machine["main"](tvm.runtime.tensor(x, tvm.cpu())).numpy()
        np.testing.assert_array_equal(actual, simulate(module, x)[0])


@I.ir_module
class Before:
    @T.prim_func(private=True, s_tir=True)
    def twofold(x: T.Buffer((1, 2, 2, 4), "uint8"), y: T.Buffer((1, 2, 2, 4), "uint8")) -> None:
        T.func_attr({"tvmquant.kernel": "twofold"})
        for i, j, k in T.grid(2, 2, 4):
            with T.sblock("y"):
                h, w, c = T.axis.remap("SSS", [i, j, k])
                y[0, h, w, c] = x[0, h, w, c] * T.uint8(2)

    @T.prim_func(private=True, s_tir=True)
    def concat(
        a: T.Buffer((1, 2, 2, 4), "uint8"),
        b: T.Buffer((1, 2, 2, 4), "uint8"),
        y: T.Buffer((1, 2, 2, 8), "uint8"),
    ) -> None:
        T.func_attr({"tvmquant.kernel": "concat", "tvmquant.operation": "concat"})
        for i, j, k in T.grid(2, 2, 8):
            with T.sblock("y"):
                h, w, c = T.axis.remap("SSS", [i, j, k])
                y[0, h, w, c] = T.if_then_else(c < 4, a[0, h, w, c % 4], b[0, h, w, c % 4])

    @R.function
    def main(x: R.Tensor((1, 2, 2, 4), "uint8")) -> R.Tensor((1, 2, 2, 8), "uint8"):
        cls = Before
        with R.dataflow():
            a = R.call_tir(cls.twofold, (x,), R.Tensor((1, 2, 2, 4), "uint8"))
            b = R.call_tir(cls.twofold, (a,), R.Tensor((1, 2, 2, 4), "uint8"))
            c = R.call_tir(cls.twofold, (x,), R.Tensor((1, 2, 2, 4), "uint8"))
            y = R.call_tir(cls.concat, (b, c), R.Tensor((1, 2, 2, 8), "uint8"))
            R.output(y)
        return y


@I.ir_module
class Expected:
    @T.prim_func(private=True, s_tir=True)
    def twofold(x: T.Buffer((1, 2, 2, 4), "uint8"), y: T.Buffer((1, 2, 2, 4), "uint8")) -> None:
        T.func_attr({"tvmquant.kernel": "twofold"})
        for i, j, k in T.grid(2, 2, 4):
            with T.sblock("y"):
                h, w, c = T.axis.remap("SSS", [i, j, k])
                y[0, h, w, c] = x[0, h, w, c] * T.uint8(2)

    @T.prim_func(private=True, s_tir=True)
    def twofold_into0of8(
        x: T.Buffer((1, 2, 2, 4), "uint8"), y: T.Buffer((1, 2, 2, 8), "uint8")
    ) -> None:
        T.func_attr({"tvmquant.kernel": "twofold_into0of8"})
        for i, j, k in T.grid(2, 2, 4):
            with T.sblock("y"):
                h, w, c = T.axis.remap("SSS", [i, j, k])
                y[0, h, w, c] = x[0, h, w, c] * T.uint8(2)

    @T.prim_func(private=True, s_tir=True)
    def twofold_into4of8(
        x: T.Buffer((1, 2, 2, 4), "uint8"), y: T.Buffer((1, 2, 2, 8), "uint8")
    ) -> None:
        T.func_attr({"tvmquant.kernel": "twofold_into4of8"})
        for i, j, k in T.grid(2, 2, 4):
            with T.sblock("y"):
                h, w, c = T.axis.remap("SSS", [i, j, k])
                y[0, h, w, c + 4] = x[0, h, w, c] * T.uint8(2)

    @R.function
    def main(x: R.Tensor((1, 2, 2, 4), "uint8")) -> R.Tensor((1, 2, 2, 8), "uint8"):
        cls = Expected
        with R.dataflow():
            a = R.call_tir(cls.twofold, (x,), R.Tensor((1, 2, 2, 4), "uint8"))
            b = R.call_tir(cls.twofold_into0of8, (a,), R.Tensor((1, 2, 2, 8), "uint8"))
            y = R.call_tir_inplace(
                cls.twofold_into4of8, (x, b), inplace_indices=[1],
                out_ty=R.Tensor((1, 2, 2, 8), "uint8"),
            )  # fmt: skip
            R.output(y)
        return y


def test_parts_are_written_where_they_end_up() -> None:
    after = PlaceConcats(Machine.of("haswell", 1))(Before)
    after = relax.transform.CanonicalizeBindings()(after)
    tvm.ir.assert_structural_equal(after, Expected)


@T.prim_func(s_tir=True)
def passes_its_result_on(
    x: T.Buffer((1, 2, 2, 4), "uint8"), y: T.Buffer((1, 2, 2, 4), "uint8")
) -> None:
    T.func_attr({"tvmquant.kernel": "foreign"})
    T.evaluate(T.call_extern("int32", "memcpy", y.data, x.data, 16))


def test_what_hands_its_result_on_is_left_alone() -> None:
    functions = dict(Before.functions_items())
    functions[Before.get_global_var("twofold")] = passes_its_result_on
    module = tvm.IRModule(functions)
    after = PlaceConcats(Machine.of("haswell", 1))(module)
    assert len(called(after)) == len(called(module))
    assert not any("_into" in name for name in called(after))


def test_a_placed_kernel_leaves_the_other_channels() -> None:
    kernel = place(Before["twofold"], (1, 2, 2, 9), 3)
    built = tvm.compile(tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")}), "llvm")
    x = np.arange(16, dtype=np.uint8).reshape(1, 2, 2, 4)
    y = np.full((1, 2, 2, 9), 77, np.uint8)
    result = tvm.runtime.tensor(y)
    built["main"](tvm.runtime.tensor(x), result)
    y[..., 3:7] = 2 * x
    np.testing.assert_array_equal(result.numpy(), y)
    assert isinstance(kernel, tirx.PrimFunc)
