"""Walk the dataflow of a Relax function once, in order, and build the rewritten function.

Every graph of tvmquant is one function ``main`` of straight-line bindings, so a pass is a decision
per binding. A subclass overrides `visit_binding`; whatever it does not handle is copied with its
operands replaced and its span (the ONNX node name) kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tvm
from tvm import relax

from tvmquant.errors import ModelError


def bindings_of(function: relax.Function) -> Iterator[tuple[relax.Var, relax.Expr]]:
    """Yield ``(variable, value)`` of every binding in order.

    Raises
    ------
    ModelError
        If the function holds control flow (match_cast or branches).
    """
    for block in function.body.blocks:
        for binding in block.bindings:
            if not isinstance(binding, relax.VarBinding):
                raise ModelError(f"only straight-line graphs are supported, found {binding}")
            yield binding.var, binding.value


def used_vars(expr: relax.Expr) -> list[relax.Var]:
    """Return the variables that ``expr`` reads, once per use."""
    if isinstance(expr, relax.Call):
        return [v for arg in expr.args for v in used_vars(arg)]
    if isinstance(expr, relax.Tuple):
        return [v for field in expr.fields for v in used_vars(field)]
    if isinstance(expr, relax.TupleGetItem):
        return used_vars(expr.tuple_value)
    return [expr] if isinstance(expr, relax.Var) else []


def origins(
    expr: relax.Expr, sources: Callable[[relax.Expr], Sequence[relax.Expr] | None]
) -> list[relax.Expr]:
    """Return what an expression is made of, each once, however long and forked the way is.

    Parameters
    ----------
    expr : relax.Expr
    sources : callable
        Returns what an expression is directly made of; None where it is an origin.
    """
    found: list[relax.Expr] = []
    seen = {expr}
    pending = [expr]
    while pending:
        current = pending.pop()
        parts = sources(current)
        if parts is None:
            found.append(current)
            continue
        fresh = [part for part in dict.fromkeys(parts) if part not in seen]
        seen.update(fresh)
        pending += reversed(fresh)
    return found


def count_uses(function: relax.Function) -> Counter[relax.Var]:
    """Count how often each variable is read; being a graph output counts as one use."""
    uses: Counter[relax.Var] = Counter()
    alias: dict[relax.Var, relax.Var] = {}
    for var, value in bindings_of(function):
        if isinstance(value, relax.Var):  # an alias is not a use
            alias[var] = alias.get(value, value)
            continue
        uses.update(alias.get(v, v) for v in used_vars(value))
    uses.update(alias.get(v, v) for v in used_vars(function.body.body))
    return uses


def span_name(call: Any) -> str:
    """Return the ONNX node name that a call carries in its span, or an empty string."""
    span = getattr(call, "span", None)
    return str(span.source_name.name) if span is not None else ""


def make_span(name: str) -> tvm.ir.Span:
    """Return a span that carries a layer's name."""
    return tvm.ir.Span(tvm.ir.SourceName(name), 0, 0, 0, 0)


def with_span(call: relax.Call, name: str) -> relax.Call:
    """Return ``call`` under the layer name ``name``."""
    return relax.Call(call.op, call.args, call.attrs, call.ty_args, make_span(name))


def unused_name(name: str, taken: set[str]) -> str:
    """Return a name, numbered where it is taken, and take it."""
    unique, count = name, 1
    while unique in taken:
        count += 1
        unique = f"{name}:{count}"
    taken.add(unique)
    return unique


class DataflowRewriter:
    """Rebuild ``main`` of a module binding by binding.

    Attributes
    ----------
    function : relax.Function
        The function being read.
    builder : relax.BlockBuilder
        Receives the new bindings.
    """

    def __init__(self, module: tvm.IRModule) -> None:
        self.module = module
        self.function: relax.Function = module["main"]
        others = {var: f for var, f in module.functions.items() if var.name_hint != "main"}
        self.builder = relax.BlockBuilder(tvm.IRModule(others, attrs=module.attrs))
        self._replacement: dict[relax.Var, relax.Expr] = {}

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        """Return what replaces ``var``, or None to copy the binding; override in a pass."""
        return None

    def visit_output(self, expr: relax.Expr) -> relax.Expr:
        """Return the new expression of one graph output (a variable of the old function)."""
        return self.lookup(expr)

    def lookup(self, expr: relax.Expr) -> relax.Expr:
        """Map an operand of the old function to the new one (constants map to themselves)."""
        if isinstance(expr, relax.Var):
            return self._replacement.get(expr, expr)
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self.lookup(f) for f in expr.fields])
        return expr

    def replace(self, var: relax.Var, expr: relax.Expr) -> None:
        """Make later operands read ``expr`` wherever they read ``var``."""
        self._replacement[var] = expr

    def emit(self, expr: relax.Expr, hint: str = "") -> relax.Var:
        """Bind an expression to a new variable."""
        return self.builder.emit(expr, hint)

    def copy(self, value: relax.Expr) -> relax.Expr:
        """Return ``value`` with its operands replaced, unbound."""
        if isinstance(value, relax.Call):
            args = [self.lookup(a) for a in value.args]
            return relax.Call(value.op, args, value.attrs, value.ty_args, value.span)
        if isinstance(value, relax.TupleGetItem):
            return relax.TupleGetItem(self.lookup(value.tuple_value), value.index)
        return self.lookup(value)

    def parameters(self) -> list[relax.Var]:
        """Return the parameters of the new function; override to change them."""
        return list(self.function.params)

    def results(self) -> list[relax.Expr]:
        """Return the outputs of the function that is read; override to have more of them."""
        body = self.function.body.body
        return list(body.fields) if isinstance(body, relax.Tuple) else [body]

    def rewrite(self) -> tvm.IRModule:
        """Build the new module; other functions of the module are kept as they are."""
        main = self.function
        with self.builder.function("main", self.parameters(), attrs=dict(main.attrs or {})):
            try:
                results = self._rewrite_bindings()
            except Exception:
                self.builder._end_block()  # TVM would warn of it, beside the error
                raise
            several = len(results) > 1 or isinstance(main.body.body, relax.Tuple)
            self.builder.emit_func_output(relax.Tuple(results) if several else results[0])
        module = self.builder.finalize()
        return relax.transform.DeadCodeElimination(["main"])(module)

    def _rewrite_bindings(self) -> list[relax.Var]:
        with self.builder.dataflow():
            for var, value in bindings_of(self.function):
                new = self.visit_binding(var, value)
                if new is None:
                    new = self.copy(value)
                if isinstance(new, relax.Call | relax.TupleGetItem):
                    new = self.emit(new, str(var.name))
                self.replace(var, new)
            return [self.builder.emit_output(self.visit_output(o)) for o in self.results()]
