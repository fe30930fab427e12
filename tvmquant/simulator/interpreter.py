"""Walk the bindings of an integer graph and evaluate each with numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import tvm
from tvm import relax, sym

from tvmquant.arithmetic import Array
from tvmquant.errors import DataError, QuantizationError
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of, span_name, used_vars
from tvmquant.simulator.calls import OpCall, Operator
from tvmquant.simulator.dynamic_ops import DYNAMIC_OPS
from tvmquant.simulator.float_ops import FLOAT_OPS
from tvmquant.simulator.float_windows import FLOAT_WINDOW_OPS
from tvmquant.simulator.index_ops import INDEX_OPS
from tvmquant.simulator.integer_ops import INTEGER_OPS
from tvmquant.simulator.recurrent import RECURRENT_OPS
from tvmquant.simulator.resize import RESIZE_OPS
from tvmquant.simulator.structural_ops import STRUCTURAL_OPS

OPERATORS: dict[str, Operator] = {
    **INTEGER_OPS,
    **DYNAMIC_OPS,
    **STRUCTURAL_OPS,
    **INDEX_OPS,
    **RESIZE_OPS,
    **FLOAT_OPS,
    **FLOAT_WINDOW_OPS,
    **RECURRENT_OPS,
}


@overload
def simulate(graph: Any, *inputs: Array, intermediates: Literal[False] = False) -> list[Array]: ...
@overload
def simulate(
    graph: Any, *inputs: Array, intermediates: Literal[True]
) -> tuple[list[Array], dict[str, Any]]: ...
def simulate(
    graph: Any, *inputs: Array, intermediates: bool = False
) -> list[Array] | tuple[list[Array], dict[str, Any]]:
    """Run an integer (L2) graph exactly.

    Parameters
    ----------
    graph : IRModule, or any object whose ``module`` is one
        Its function ``main`` may be symbolic in the batch.
    *inputs : arrays
        One per parameter of ``main``, of its shape and dtype.
    intermediates : bool
        Also return the value of every layer.

    Returns
    -------
    list of arrays
        The outputs of ``main``; with ``intermediates``, the pair of that list and a dict from layer
        id to value in graph order. Where several operators share a layer id the last one counts.

    Raises
    ------
    DataError
        If the inputs do not fit the parameters.
    QuantizationError
        If an operator is not one of an integer graph, an accumulator leaves int32, or an operator
        marked as 32-bit needs more; the message names the layer.
    """
    module: tvm.IRModule = getattr(graph, "module", graph)
    function = module["main"]
    evaluation = _Evaluation(function, inputs)
    layers: dict[str, Any] = {}
    for var, expr in bindings_of(function):
        value = evaluation.bind(var, expr)
        layer = _layer_id(expr)
        if intermediates and layer:
            layers.pop(layer, None)
            layers[layer] = value
    result = evaluation.value(function.body.body)
    outputs = list(result) if isinstance(result, tuple) else [result]
    return (outputs, layers) if intermediates else outputs


class _Evaluation:
    """The values of the variables that are still to be read."""

    def __init__(self, function: relax.Function, inputs: Sequence[Array]) -> None:
        if len(inputs) != len(function.params):
            names = ", ".join(str(p.name) for p in function.params)
            raise DataError(
                f"the graph has {len(function.params)} inputs ({names}), got {len(inputs)} arrays"
            )
        self._last_reader = _last_readers(function)
        self._values: dict[relax.Var, Any] = {}
        self._symbols = sym.Analyzer()
        extents: dict[Any, int] = {}
        for param, array in zip(function.params, inputs, strict=True):
            _check_input(param, array, extents)
            self._values[param] = array
        for symbol, extent in extents.items():
            self._symbols.bind(symbol, tvm.tirx.IntImm(str(symbol.ty.dtype), extent))

    def bind(self, var: relax.Var, expr: relax.Expr) -> Any:
        """Evaluate one binding and forget what it was the last to read."""
        value = self._values[var] = self.value(expr, str(var.name))
        for operand in (*used_vars(expr), var):
            reader = self._last_reader.get(operand, var)
            if reader is not None and reader.same_as(var):
                self._values.pop(operand, None)
        return value

    def value(self, expr: Any, name: str = "") -> Any:
        """Return an expression's value: arrays, numbers, text, and tuples of them."""
        if isinstance(expr, relax.Var) and expr in self._values:
            return self._values[expr]
        if isinstance(expr, tvm.ir.GenericConst):
            return expr.value.numpy()
        if isinstance(expr, relax.Tuple):
            return tuple(self.value(field) for field in expr.fields)
        if isinstance(expr, relax.TupleGetItem):
            return self.value(expr.tuple_value)[expr.index]
        if isinstance(expr, relax.ShapeExpr):
            return tuple(self._number(extent) for extent in expr.values)
        if isinstance(expr, relax.Call):
            return self._call(expr, name)
        return self._number(expr)

    def _call(self, call: relax.Call, name: str) -> Any:
        layer = _layer_id(call) or name
        operator = OPERATORS.get(str(call.op.name))
        if operator is None:
            raise QuantizationError(
                f"layer {layer}: the simulator has no operator {call.op.name}; it runs integer "
                "(L2) graphs and the float operators that may remain in them"
            )
        args = [self.value(arg) for arg in call.args]
        return operator(OpCall(layer, args, _attributes(call)))

    def _number(self, expr: Any) -> int | float:
        """Return a scalar operand, its symbols replaced by the extents of the inputs."""
        if not isinstance(expr, int | float):
            expr = self._symbols.simplify(expr)
            if not isinstance(expr, tvm.tirx.IntImm | tvm.tirx.FloatImm):
                raise QuantizationError(f"the inputs' shapes do not determine the value of {expr}")
            expr = expr.value
        number: int | float = expr
        return number


def _check_input(param: relax.Var, array: Array, extents: dict[Any, int]) -> None:
    """Compare an array with a parameter's type and note what its symbolic extents are."""
    shape, dtype = list(param.ty.shape.values), str(param.ty.dtype.dtype)
    fits = len(shape) == array.ndim and str(array.dtype) == dtype
    for expected, found in zip(shape, array.shape, strict=False):
        symbolic = isinstance(expected, relax.Var)
        fits &= found == (extents.setdefault(expected, found) if symbolic else int(expected))
    if not fits:
        expected = ", ".join(str(getattr(extent, "value", extent)) for extent in shape)
        raise DataError(
            f"input {param.name} must be {dtype} of shape ({expected}), "
            f"found {array.dtype} of shape {array.shape}"
        )


def _last_readers(function: relax.Function) -> dict[relax.Var, relax.Var | None]:
    """Map each variable to the binding that reads it last, or to None if it is an output."""
    readers: dict[relax.Var, relax.Var | None] = {}
    for var, expr in bindings_of(function):
        readers.update((operand, var) for operand in used_vars(expr))
    readers.update((operand, None) for operand in used_vars(function.body.body))
    return readers


def _is_own(call: relax.Call) -> bool:
    return str(call.op.name).startswith(qop.PREFIX)


def _layer_id(expr: relax.Expr) -> str:
    own = isinstance(expr, relax.Call) and _is_own(expr)
    return str(qop.attributes(expr).get("id", "")) if own else span_name(expr)


def _attributes(call: relax.Call) -> dict[str, Any]:
    """Return the attributes of an own or built-in operator as plain Python values."""
    if isinstance(call.attrs, tvm.ir.DictAttrs):
        own: dict[str, Any] = qop.attributes(call)
        return own
    names = [name for name in dir(call.attrs) if not name.startswith("_")]
    values = {name: getattr(call.attrs, name) for name in names}
    return {name: _plain(value) for name, value in values.items() if not callable(value)}


def _plain(value: Any) -> Any:
    if isinstance(value, tvm.tirx.IntImm | tvm.tirx.FloatImm):
        return value.value
    if isinstance(value, tvm.ir.Array):
        return [_plain(v) for v in value]
    return value
