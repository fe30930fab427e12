"""Add an entry that takes and returns raw integers (L3).

Before::

    main(x):  x_q = call_tir(quantize, x); ...; y_q = ...; y = call_tir(dequantize, y_q); return y

After::

    raw(x_q): ...; return y_q
    main(x):  x_q = call_tir(quantize, x); y_q = raw(x_q); return call_tir(dequantize, y_q)

Inputs that are integers already are handed on as they are. Requires that every other input is read
by one quantize kernel only and every output written by a dequantize kernel; a module where some
border operator stayed float is returned unchanged.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from tvmquant.ir.quantized_ops import is_float
from tvmquant.ir.rewriter import bindings_of, used_vars
from tvmquant.schedules.kernel_facts import operation_of


class _Split:
    """The bindings of ``main``, divided into borders and core."""

    def __init__(self, module: tvm.IRModule) -> None:
        self.module = module
        self.function = function = module["main"]
        bindings = list(bindings_of(function))
        body = function.body.body
        alias = {var: value for var, value in bindings if isinstance(value, relax.Var)}
        values = dict(bindings)
        outputs = list(body.fields) if isinstance(body, relax.Tuple) else [body]
        self.outputs = [alias.get(o, o) for o in outputs]
        self.tuple = isinstance(body, relax.Tuple)
        self.floats = {p for p in function.params if is_float(p)}
        self.quantizes = [
            (var, value)
            for var, value in bindings
            if self._computes(value, "quantize") and value.args[1].fields[0] in self.floats
        ]
        self.dequantizes: list[tuple[relax.Var, Any]] = [(o, values.get(o)) for o in self.outputs]
        border = {var for var, _ in (*self.quantizes, *self.dequantizes)} | set(alias)
        self.core = [(var, value) for var, value in bindings if var not in border]

    def _computes(self, value: relax.Expr, operation: str) -> bool:
        """Whether a value is the call of a kernel of an operation."""
        calls = isinstance(value, relax.Call) and isinstance(value.args[0], tvm.ir.GlobalVar)
        return calls and operation_of(self.module[value.args[0]]) == operation

    def possible(self) -> bool:
        """Whether the integers can be exposed."""
        if not all(self._computes(value, "dequantize") for _, value in self.dequantizes):
            return False
        if len({var for var, _ in self.quantizes}) != len(self.floats):
            return False
        dequantized = {var for var, _ in self.dequantizes}
        return not any(
            v in self.floats or v in dequantized for _, value in self.core for v in used_vars(value)
        )


@tvm.ir.transform.module_pass(opt_level=0, name="ExposeIntegers")
class ExposeIntegers:
    """Split ``main`` into its float borders and an integer function ``raw``."""

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with ``raw``, or unchanged where that is not possible."""
        main = module["main"]
        split = _Split(module)
        if not split.possible():
            return module
        builder = relax.BlockBuilder(_kernels_only(module))
        made = {value.args[1].fields[0]: (var, value) for var, value in split.quantizes}
        results = [value.args[1].fields[0] for _, value in split.dequantizes]
        # of each parameter: what raw takes in its place, and how main computes that
        integers = [made.get(p, (p, p)) for p in main.params]
        params = [relax.Var(f"{p.name}_q", var.ty) for p, (var, _) in
                  zip(main.params, integers, strict=True)]  # fmt: skip
        mapping: dict[relax.Var, relax.Expr] = {
            var: param for (var, _), param in zip(integers, params, strict=True)
        }
        with builder.function("raw", params):
            with builder.dataflow():
                for var, value in split.core:
                    mapping[var] = builder.emit(_copy(value, mapping), str(var.name))
                raw_outputs = [builder.emit_output(mapping[r]) for r in results]
            raw = builder.emit_func_output(
                relax.Tuple(raw_outputs) if split.tuple else raw_outputs[0]
            )
        _call_raw(builder, raw, split, [value for _, value in integers])
        return relax.transform.DeadCodeElimination(["main", "raw"])(builder.finalize())


def _kernels_only(module: tvm.IRModule) -> tvm.IRModule:
    """Return a copy of the module without ``main``, which is about to be built anew."""
    functions = {v: f for v, f in module.functions.items() if v.name_hint != "main"}
    return tvm.IRModule(functions, attrs=module.attrs)


def _call_raw(
    builder: relax.BlockBuilder,
    raw: tvm.ir.GlobalVar,
    split: _Split,
    integers: list[relax.Expr],
) -> None:
    main = split.function
    with builder.function("main", list(main.params), attrs=dict(main.attrs or {})):
        with builder.dataflow():
            inputs = [
                value if isinstance(value, relax.Var) else builder.emit(value, "x_q")
                for value in integers
            ]
            result = builder.emit(relax.Call(raw, inputs), "raw_outputs")
            outputs = []
            for i, (_, value) in enumerate(split.dequantizes):
                item = relax.TupleGetItem(result, i) if split.tuple else result
                source = value.args[1].fields[0]
                bound = builder.emit(item) if split.tuple else result
                outputs.append(builder.emit_output(_copy(value, {source: bound})))
        builder.emit_func_output(relax.Tuple(outputs) if split.tuple else outputs[0])


def _copy(value: relax.Expr, mapping: dict[relax.Var, relax.Expr]) -> relax.Expr:
    def lookup(expr: relax.Expr) -> relax.Expr:
        if isinstance(expr, relax.Var):
            return mapping.get(expr, expr)
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([lookup(f) for f in expr.fields])
        return expr

    if isinstance(value, relax.Call):
        return relax.Call(
            value.op, [lookup(a) for a in value.args], value.attrs, value.ty_args, value.span
        )
    if isinstance(value, relax.TupleGetItem):
        return relax.TupleGetItem(lookup(value.tuple_value), value.index)
    return lookup(value)
