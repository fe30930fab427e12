"""The entry that takes and returns integers: what of main moves into it, and when there is none."""

from __future__ import annotations

from typing import Any

import pytest
import tvm
from tvm import relax
from tvm.script import tirx as T  # noqa: N812

from tvmquant.passes.expose_integers import ExposeIntegers
from tvmquant.schedules.kernel_facts import with_facts

SHAPE = (4, 8)
FLOAT, INTEGER = relax.TensorType(SHAPE, "float32"), relax.TensorType(SHAPE, "uint8")


@T.prim_func(private=True, s_tir=True)
def quantize(x: T.Buffer((4, 8), "float32"), y: T.Buffer((4, 8), "uint8")) -> None:
    for i, j in T.grid(4, 8):
        with T.sblock("y"):
            vi, vj = T.axis.remap("SS", [i, j])
            y[vi, vj] = T.Cast("uint8", x[vi, vj])


@T.prim_func(private=True, s_tir=True)
def double(x: T.Buffer((4, 8), "uint8"), y: T.Buffer((4, 8), "uint8")) -> None:
    for i, j in T.grid(4, 8):
        with T.sblock("y"):
            vi, vj = T.axis.remap("SS", [i, j])
            y[vi, vj] = x[vi, vj] + x[vi, vj]


@T.prim_func(private=True, s_tir=True)
def dequantize(x: T.Buffer((4, 8), "uint8"), y: T.Buffer((4, 8), "float32")) -> None:
    for i, j in T.grid(4, 8):
        with T.sblock("y"):
            vi, vj = T.axis.remap("SS", [i, j])
            y[vi, vj] = T.Cast("float32", x[vi, vj])


class Module:
    """A module in the making: main, perhaps raw, and the three kernels above."""

    def __init__(self) -> None:
        self.builder = relax.BlockBuilder()
        self.kernels = {
            name: self.builder.add_func(with_facts(kernel, name, name.partition("_")[0]), name)
            for name, kernel in {
                "quantize_f32_uint8": quantize,
                "double_uint8": double,
                "dequantize_uint8_f32": dequantize,
            }.items()
        }

    def call(self, name: str, x: relax.Expr, out: relax.TensorType) -> relax.Expr:
        return relax.op.call_tir(self.kernels[name], [x], out_ty=out)

    def emit(self, value: relax.Expr) -> relax.Var:
        return self.builder.emit(value)

    def quantize(self, x: relax.Expr) -> relax.Var:
        return self.emit(self.call("quantize_f32_uint8", x, INTEGER))

    def double(self, x: relax.Expr) -> relax.Var:
        return self.emit(self.call("double_uint8", x, INTEGER))

    def dequantize(self, x: relax.Expr) -> relax.Expr:
        """Return a call that is not bound yet: an output of the function is bound once."""
        return self.call("dequantize_uint8_f32", x, FLOAT)

    def function(self, name: str, types: list[relax.TensorType], body: Any) -> tvm.ir.GlobalVar:
        """Add a function that returns what ``body`` does: one result or several."""
        params = [relax.Var(f"x{i}", t) for i, t in enumerate(types)]
        with self.builder.function(name, params):
            with self.builder.dataflow():
                result = body(*params)
                several = not isinstance(result, relax.Expr)
                outputs = [self.builder.emit_output(r) for r in (result if several else (result,))]
            return self.builder.emit_func_output(relax.Tuple(outputs) if several else outputs[0])


def main_of(body: Any, *types: relax.TensorType) -> tvm.IRModule:
    module = Module()
    module.function("main", list(types or [FLOAT]), lambda *x: body(module, *x))
    return module.builder.finalize()


def test_main_becomes_borders_around_raw() -> None:
    before = main_of(lambda m, x: m.emit(m.dequantize(m.double(m.double(m.quantize(x))))))
    expected = Module()
    raw = expected.function("raw", [INTEGER], lambda x: expected.double(expected.double(x)))
    expected.function(
        "main",
        [FLOAT],
        lambda x: expected.dequantize(expected.emit(relax.Call(raw, [expected.quantize(x)]))),
    )

    after = ExposeIntegers()(before)

    relax.analysis.well_formed(after)
    tvm.ir.assert_structural_equal(after, expected.builder.finalize())


def test_inputs_and_outputs_keep_their_order() -> None:
    def body(m: Module, x: relax.Var, y: relax.Var) -> Any:
        second, first = m.quantize(y), m.quantize(x)
        return m.dequantize(m.double(second)), m.dequantize(first)

    before = main_of(body, FLOAT, FLOAT)
    expected = Module()
    raw = expected.function("raw", [INTEGER, INTEGER], lambda x, y: (expected.double(y), x))

    def main(x: relax.Var, y: relax.Var) -> Any:
        inputs = [expected.quantize(x), expected.quantize(y)]
        both = expected.emit(relax.Call(raw, inputs))
        items = (expected.emit(relax.TupleGetItem(both, i)) for i in range(2))
        return map(expected.dequantize, items)

    expected.function("main", [FLOAT, FLOAT], main)
    after = ExposeIntegers()(before)

    relax.analysis.well_formed(after)
    tvm.ir.assert_structural_equal(after, expected.builder.finalize())


NEAR_MISSES = {
    "an output stays integer": lambda m, x: m.double(m.quantize(x)),
    "a float operator before the end": lambda m, x: m.emit(
        relax.op.nn.relu(m.emit(m.dequantize(m.double(m.quantize(x)))))
    ),
    "the input is read elsewhere": lambda m, x: m.dequantize(
        m.double(m.quantize(m.emit(relax.op.nn.relu(x))))
    ),
    "the input is quantized twice": lambda m, x: (
        m.dequantize(m.quantize(x)), m.dequantize(m.double(m.quantize(x)))
    ),
    "an output is quantized again": lambda m, x: read_again(m, x),
}  # fmt: skip


def read_again(m: Module, x: relax.Var) -> Any:
    y = m.emit(m.dequantize(m.double(m.quantize(x))))
    return y, m.dequantize(m.quantize(y))


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_other_borders_are_left_alone(name: str) -> None:
    module = main_of(NEAR_MISSES[name])
    tvm.ir.assert_structural_equal(ExposeIntegers()(module), module)
