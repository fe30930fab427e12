"""Requantizations, products and tables that no accumulation absorbed."""

from __future__ import annotations

from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.tensor_types import dtype_of, static_shape
from tvmquant.passes.lowering.emitter import Handler, Lowerer
from tvmquant.passes.lowering.epilogues import epilogue_of, folded, unfolded
from tvmquant.schedules import elementwise


def _requantize(lowerer: Lowerer, call: relax.Call) -> relax.Expr:
    attrs = qop.attributes(call)
    x, *extra = (_of_a_rank(lowerer, a) for a in call.args)
    attrs["residual"] = int(len(extra) > 3 and not attrs.get("slopes", 0))
    epilogue = folded(attrs, extra)
    residual = epilogue.residual
    spec = elementwise.RequantizeSpec(
        static_shape(call) or (1,), dtype_of(x), epilogue.static, epilogue.shape,
        static_shape(residual) if residual is not None else None,
        epilogue.residual_dtype, static_shape(x),
    )  # fmt: skip
    return _elementwise(lowerer, spec, [x, *epilogue.operands()], call)


def _multiply(lowerer: Lowerer, call: relax.Call) -> relax.Expr:
    attrs = qop.attributes(call)
    a, b, *extra = (_of_a_rank(lowerer, arg) for arg in call.args)
    epilogue = epilogue_of(attrs, extra)
    static, vectors, shape = unfolded(epilogue)
    spec = elementwise.MultiplySpec(
        static_shape(a), static_shape(b), attrs["a_zero_point"], attrs["b_zero_point"],
        static, shape, epilogue.residual_dtype if epilogue is not None else "uint8",
    )  # fmt: skip
    return _elementwise(lowerer, spec, [a, b, *vectors], call)


def _table(lowerer: Lowerer, call: relax.Call) -> relax.Expr:
    q, values = (_of_a_rank(lowerer, a) for a in call.args)
    spec = elementwise.TableSpec(static_shape(q), dtype_of(values))
    return _elementwise(lowerer, spec, [q, values], call)


def _of_a_rank(lowerer: Lowerer, expr: relax.Expr) -> relax.Expr:
    """Return an operand of an elementwise kernel, a scalar as a vector of one element."""
    found = lowerer.lookup(expr)
    return found if static_shape(found) else lowerer.reshaped(found, (1,))


def _elementwise(
    lowerer: Lowerer, spec: elementwise.Spec, args: list[relax.Expr], call: relax.Call
) -> relax.Expr:
    out = relax.TensorType(elementwise.output_shape(spec), dtype_of(call))
    kernel = elementwise.kernel(spec, lowerer.machine)
    return lowerer.reshaped(lowerer.call(kernel, args, out, call), static_shape(call))


HANDLERS: dict[str, Handler] = {
    qop.REQUANTIZE: _requantize,
    qop.QMULTIPLY: _multiply,
    qop.TABLE: _table,
}
