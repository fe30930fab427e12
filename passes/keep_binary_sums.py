"""Keep sums of binary layers whole until all of them are added up (L0, before it is annotated).

Before, ``b`` being a sign and ``w1``, ``w2``, ``w3`` weights of one magnitude per output channel::

    lv = (conv2d(b, w1) + c) + conv2d(b, w2); lv1 = lv + conv2d(b, w3)

After::

    s1 = fake_quant(conv2d(b, w1)) {format: "int32"}       # of the scale of b times that of w1
    s2 = fake_quant(s1 + conv2d(b, w2)) {format: "int32"}
    lv1 = (s2 + conv2d(b, w3)) + c

so that weights, or inputs, that are sums of ``a_i B_i``, each of one bit, make one accumulator that
is rounded once. What several layers give is counted in whole numbers of the first, exactly; of more
than two in steps of which `BITS` bits hold the sum. Other tensors are added last.

Reference: Lin, Zhao and Pan (2017), "Towards Accurate Binary Convolutional Neural Network".
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tvm
from tvm import relax

from tvmquant import formats
from tvmquant.arithmetic import FloatArray
from tvmquant.formats import INT32, UBINARY, Binary
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.imported_quantizers import KNOWN
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of, count_uses, span_name, unused_name
from tvmquant.passes.region_operators import (
    RESHAPES,
    along,
    keeps_shape,
    output_axis,
    varies_along,
)

# What a sum of several layers takes: of 1024 products each, steps are 2**-10 of a product. More
# bits would leave the multipliers of `regions.signs`, of 29 bits, fewer for their ratio.
BITS = 21


# Operators that hand on values of one tensor.
PICKERS = (*RESHAPES, "relax.strided_slice", "relax.nn.max_pool2d", "relax.nn.pad")


class _Term(NamedTuple):
    """A binary layer times constants: ``scale`` times integers of up to ``bound``.

    Scales have the layer's rank, and extent 1 but along its output channels.
    """

    expr: relax.Var
    factor: FloatArray
    scale: FloatArray
    bound: int
    axis: int


class _Sum(NamedTuple):
    """Layers, other tensors and a constant that are added up."""

    terms: list[_Term]
    others: list[tuple[relax.Var, FloatArray]]
    constants: list[FloatArray]
    inner: set[relax.Var]


class _Keeper(DataflowRewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.producer = dict(bindings_of(self.function))
        self.uses = count_uses(self.function)
        self.names: set[str] = {
            qop.attributes(value)["id"]
            for value in self.producer.values()
            if qop.is_call(value, qop.FAKE_QUANT)
        }
        self.sums: dict[relax.Var, _Sum] = {}
        inner: set[relax.Var] = set()
        for var, value in reversed(list(bindings_of(self.function))):
            if var in inner or not _adds_tensors(value):
                continue
            found = _Sum([], [], [], set())
            self._collect(var, np.ones((1,) * len(var.ty.shape.values)), found)
            if len(found.terms) > 1:
                self.sums[var] = found
                inner |= found.inner

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        return self._chained(self.sums[var], value) if var in self.sums else None

    def _collect(self, root: relax.Var, factor: FloatArray, found: _Sum) -> None:
        """Add what a tensor is the sum of, in order, however deep the additions are."""
        pending = [(root, factor)]
        while pending:
            var, factor = pending.pop()
            value = self.producer.get(var)
            whole = var.same_as(root) or self.uses[var] == 1
            if not whole or not isinstance(value, relax.Call):
                found.others.append((var, factor))
                continue
            if _adds_tensors(value):
                found.inner.add(var)
                pending += [(arg, factor) for arg in reversed(value.args)]
                continue
            constant = _constant_of(value)
            if constant is not None and qop.is_call(value, "relax.multiply"):
                found.inner.add(var)
                pending.append((value.args[0], factor * constant))
                continue
            if constant is not None:
                found.inner.add(var)
                found.constants.append(factor * constant)
                pending.append((value.args[0], factor))
                continue
            term = self._term(var, value, factor)
            if term is None:
                found.others.append((var, factor))
            else:
                found.terms.append(term)

    def _term(self, var: relax.Var, call: relax.Call, factor: FloatArray) -> _Term | None:
        """Return a layer of one bit; None of anything else."""
        if not qop.is_call(call, *qop.FLOAT_CONTRACTIONS) or not np.all(factor):
            return None
        x, padding = self._quantizer(call.args[0])
        weight = self._made(call.args[1])
        axis = output_axis(call)
        if x is None or not qop.is_call(weight, qop.FAKE_QUANT):
            return None
        attrs, held = qop.attributes(x), qop.attributes(weight)
        binary = attrs["format"] == UBINARY.name and isinstance(
            formats.parse(held["format"]), Binary
        )
        if not binary or not varies_along(factor, factor.ndim, axis):
            return None
        zero = int(qop.constant_array(x.args[2]).reshape(-1)[0])
        scales = [qop.constant_array(q.args[1]).astype(np.float64) for q in (x, weight)]
        steps = max(attrs["qmax"] - zero, zero - attrs["qmin"], round(padding / scales[0].min()))
        outputs = int(call.ty.shape.values[axis])
        products = qop.constant_array(weight.args[0]).size // outputs
        scale = along(scales[0] * scales[1], axis, factor.ndim) * np.abs(factor)
        return _Term(var, factor, scale, steps * products, axis)

    def _quantizer(self, expr: relax.Expr) -> tuple[relax.Call | None, float]:
        """Return the fake_quant whose values a tensor has, and the largest number beside them."""
        made, largest = self._made(expr), 0.0
        while isinstance(made, relax.Call) and qop.is_call(made, *PICKERS):
            if qop.is_call(made, "relax.nn.pad"):
                largest = max(largest, abs(float(made.attrs.pad_value)))
            made = self._made(made.args[0])
        return made if qop.is_call(made, qop.FAKE_QUANT) else None, largest

    def _made(self, expr: relax.Expr) -> relax.Expr | None:
        """Return what makes a tensor, by whatever name."""
        made = self.producer.get(expr) if isinstance(expr, relax.Var) else None
        while isinstance(made, relax.Var):
            made = self.producer.get(made)
        return made

    def _chained(self, found: _Sum, call: relax.Call) -> relax.Expr:
        """Add layers up one after the other, then the other tensors and the constants."""
        last = found.terms[-1] if not found.others else None
        total: relax.Expr | None = None
        largest = np.zeros(())
        for term in found.terms:
            value = self._times(self.lookup(term.expr), term.factor)
            largest = largest + term.scale * term.bound
            scale, bound = term.scale, float(term.bound)
            if total is not None:
                value = self._added(total, value, call)
                _, exponent = np.frexp(largest / scale)
                scale = np.ldexp(scale, exponent - BITS)
                bound = float(2**BITS)
            total = value if term is last else self._kept(value, term, scale, bound, call)
        assert total is not None
        for expr, factor in found.others:
            total = self._added(total, self._times(self.lookup(expr), factor), call)
        constant = sum(found.constants, np.zeros(()))
        if np.any(constant):
            total = self._added(total, qop.constant(constant.astype(np.float32)), call)
        return total

    def _times(self, value: relax.Expr, factor: FloatArray) -> relax.Expr:
        if np.all(factor == 1.0):
            return value
        return self.emit(relax.op.multiply(value, qop.constant(factor.astype(np.float32))))

    def _added(self, left: relax.Expr, right: relax.Expr, call: relax.Call) -> relax.Expr:
        new = relax.op.add(left, right)
        return self.emit(relax.Call(new.op, new.args, new.attrs, new.ty_args, call.span))

    def _kept(
        self, value: relax.Expr, term: _Term, scale: FloatArray, bound: float, call: relax.Call
    ) -> relax.Expr:
        """Hold a sum in 32 bits."""
        scales = scale.astype(np.float32).reshape(-1)
        attrs = KNOWN | {
            "fixed": 0,
            "ties": "even",
            "id": unused_name(f"{span_name(self.producer[term.expr])}.sums", self.names),
            "role": qop.ACTIVATION,
            "format": INT32.name,
            "qmin": -int(bound),
            "qmax": int(bound),
            "axis": term.axis if scales.size > 1 else -1,
            "range_of": "",
            "shares": "zero_point",
            "nonzero": 0,
            "least": 0.0,
            "greatest": 0.0,
        }
        constants = scales, np.zeros(1, np.int32)
        args = [value, *map(qop.constant, constants)]
        return self.emit(qop.emit(qop.FAKE_QUANT, args, attrs, call.span), "sums")


def _adds_tensors(value: relax.Expr) -> bool:
    """Whether a value is the sum of two tensors of its own shape."""
    return qop.is_call(value, "relax.add") and all(
        isinstance(arg, relax.Var) and keeps_shape(value, arg) for arg in value.args
    )


def _constant_of(call: relax.Call) -> FloatArray | None:
    """Return what a tensor of the result's shape is multiplied by, or is added to it."""
    if not qop.is_call(call, "relax.add", "relax.multiply"):
        return None
    constant = qop.constant_array(call.args[1])
    if constant is None or not keeps_shape(call, call.args[0]):
        return None
    rank = len(call.ty.shape.values)
    if not varies_along(constant, rank, None):
        return None
    shape = (1,) * (rank - constant.ndim) + constant.shape if constant.size > 1 else (1,) * rank
    found: FloatArray = constant.astype(np.float64).reshape(shape)
    return found


@tvm.ir.transform.module_pass(opt_level=0, name="KeepBinarySums")
class KeepBinarySums:
    """Round sums of binary layers once (see the module's description)."""

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the rewritten module."""
        return _Keeper(module).rewrite()
