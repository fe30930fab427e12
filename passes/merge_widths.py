"""One module of the networks that one set of weights is at several bit widths (L3).

Before, of each width a module::

    main(x) = ... raw(x_q) ...,  raw(x_q) = call_tir(conv2d_3x3, (x_q, weight, ...))

After, the functions of all but the first with the width in their name::

    main, raw, main_w4, raw_w4

Kernels that are equal are one. What modules note of their weights (`store_weights`) is joined.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import relax

from tvmquant.entries import entry_name
from tvmquant.passes.store_weights import FORMATS, LAYOUTS


@relax.expr_functor.mutator
class _Renamer(relax.PyExprMutator):  # type: ignore[misc]  # TVM's classes are untyped
    """Rewrites functions to call others."""

    def __init__(self, builder: Any, names: Mapping[Any, Any]) -> None:
        super().__init__()
        self.builder_, self.names = builder, names

    def visit_global_var_(self, var: tvm.ir.GlobalVar) -> relax.Expr:
        """Return the function that takes the place of another."""
        return self.names.get(var, var)


def merge_widths(modules: Mapping[int, tvm.IRModule]) -> tvm.IRModule:
    """Return one module of several.

    Parameters
    ----------
    modules : mapping of int to IRModule
        By width, the widest first: its functions keep their names.
    """
    widest = next(iter(modules))
    builder = relax.BlockBuilder(modules[widest])
    notes: dict[str, dict[str, str]] = {name: {} for name in (FORMATS, LAYOUTS)}
    for width, module in modules.items():
        for name, joined in notes.items():
            for key, noted in ((module.attrs or {}).get(name) or {}).items():
                joined.setdefault(str(key), str(noted))
        if width != widest:
            _add(builder, module, width)
    merged = builder.get()
    for name, joined in notes.items():
        merged = merged.with_attr(name, joined) if joined else merged
    return merged


def _add(builder: Any, module: tvm.IRModule, width: int) -> None:
    names: dict[Any, Any] = {}
    functions = {str(var.name_hint): (var, f) for var, f in module.functions_items()}
    for name, (var, function) in functions.items():
        if not isinstance(function, relax.Function):
            names[var] = builder.add_func(function, name)
    for name in ("raw", "main"):  # the one calls the other
        if name not in functions:
            continue
        var, function = functions[name]
        renamed = _Renamer(builder, names).visit_expr(function)
        renamed = renamed.with_attr("global_symbol", entry_name(name, width))
        names[var] = builder.add_func(renamed, entry_name(name, width))
