"""Put a fake_quant on every tensor that the integer graph will hold (L0 -> L1).

Before::

    lv0 = conv2d(x, w); lv1 = add(lv0, bias); lv2 = relu(lv1); lv3 = max_pool2d(lv2)

After::

    x_q = fake_quant(x); w_q = fake_quant(w, axis=0)
    lv0 = conv2d(x_q, w_q); lv1 = add(lv0, bias); lv2 = relu(lv1)
    lv2_q = fake_quant(lv2); lv3 = max_pool2d(lv2_q)

Requires an L0 graph in canonical form (`CanonicalizeOps`). Guarantees that between two fake_quants
there is exactly one of the *regions* that `InsertRequantize` can compute with a single rounding:

* an **accumulator**: convolution, dense, product, window sum or a quantized tensor, times and plus
  constants, plus at most one more quantized tensor (the residual), then a clip, or a PRelu or leaky
  ReLU, which gives the negative side of a contraction (a PRelu also that of a quantized tensor) a
  slope;
* a **table**: any chain of elementwise functions of one quantized tensor, comparisons and choices
  between them included;
* a **mover**: reshape, transpose, slice, pad, concat, max-pooling, resize (a linear one rounds
  once). These keep the scale of their input, so a fake_quant stands before them only. Inputs of one
  concat form a group with a common zero point, so that concat copies bytes; each keeps a scale of
  its own, which the readers absorb (`scale_factors`). Where a reader cannot (a table), they share
  the scale too, if their ranges are alike;
* an **extreme**: the greater or lesser of two tensors, or the greatest or least along axes. What is
  made for it only needs the range of the result, beyond which nothing comes through.

Constants of an accumulator vary along the output channels of its contraction, or, without one,
along any axis but the batch. Constants that are joined or compared with tensors are quantized like
these.

What is cast to float from an input of 8-bit integers, or from booleans that are no part of a table,
is quantized already: scale 1, zero point 0 (128 where it is signed), whatever the data are::

    lv = astype(pixels, "float32"); lv_q = fake_quant(lv) {calibrated: 1, fixed: 1}

A tensor used more than once is always materialized. Graph outputs, and what float operators read,
are kept in 16 bits; where something reads them in 8 bits as well, it reads them rounded once more::

    lv_q16 = fake_quant(lv) {role: "output", format: "int16"}
    lv_q = fake_quant(lv_q16) {format: "uint8"}

A layer that fits no region may read its input rounded by its range (`dynamic_layers`)::

    x_d = dynamic_quant(x); w_q = fake_quant(w, axis=0); lv = conv2d(x_d, w_q)

What fits no region stays float else, and with it the functions of it that make much of small values
(`amplification`), between a dequantize and a quantize, and is listed by
`VerifyIntegerOnly`. All widths are 8 bits until `AssignBitWidths` narrows some.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmquant.formats import INT8, INT16, INT32, UINT8
from tvmquant.ir import dynamic_ops as dyn
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import (
    DataflowRewriter,
    bindings_of,
    span_name,
    unused_name,
    used_vars,
)
from tvmquant.passes.constants_as_tensors import constants_as_tensors
from tvmquant.passes.quantized_regions import RegionFinder
from tvmquant.passes.region_operators import EXACT_INPUTS


class _Annotator(DataflowRewriter):
    def __init__(
        self, module: tvm.IRModule, activation_scheme: str, calibrates: bool, dynamic: bool
    ) -> None:
        super().__init__(module)
        self.finder = RegionFinder(self.function, calibrates=calibrates, dynamic=dynamic)
        self.scheme = activation_scheme
        self.names: set[str] = {
            qop.attributes(value)["id"]
            for _, value in bindings_of(self.function)
            if qop.is_call(value, qop.FAKE_QUANT)
        }
        self.ids: dict[tuple[relax.Var, str], str] = {}
        self.producer = dict(bindings_of(self.function))
        # of tensors that are read in 8 bits and otherwise: what the other readers get, the float
        # result itself where it is one
        self.precise: dict[relax.Var, relax.Expr] = {}
        # what layers read that is rounded by its range, by what it rounds
        self.ranged: dict[relax.Expr, relax.Expr] = {}

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        self._quantize_parameters(value)
        dynamic = var in self.finder.dynamic.layers
        new = None
        if isinstance(value, relax.Call):
            new = self._dynamic_layer(value) if dynamic else self._with_quantized_weight(value)
        roles = self.finder.marked.get(var)
        both = roles is not None and roles >= {qop.ACTIVATION, qop.OUTPUT}
        precise = var in self.finder.float_results or (both and var in self.finder.comparisons)
        if precise and not dynamic and isinstance(value, relax.Call):
            new = self._with_precise_operands(value)
        if roles is None:
            return new
        bound = self.emit(new if new is not None else self.copy(value), str(var.name))
        if both:
            bound = self.emit(self._fake_quant(var, bound, value, qop.OUTPUT), f"{var.name}_q16")
            self.precise[var] = bound
        elif var in self.finder.float_results:
            self.precise[var] = bound
        role = qop.ACTIVATION if qop.ACTIVATION in roles or qop.OUTPUT not in roles else qop.OUTPUT
        return self.emit(self._fake_quant(var, bound, value, role), f"{var.name}_q")

    def visit_output(self, expr: relax.Expr) -> relax.Expr:
        return self._precise(expr)

    def _with_precise_operands(self, call: relax.Call) -> relax.Call:
        args = [self._precise(arg) for arg in call.args]
        return relax.Call(call.op, args, call.attrs, call.ty_args, call.span)

    def _precise(self, expr: relax.Expr) -> relax.Expr:
        """Return an operand for a reader that takes more than 8 bits."""
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self._precise(field) for field in expr.fields])
        if not isinstance(expr, relax.Var):
            return expr
        pending = [expr]
        while pending:
            var = pending[-1]
            value = self.producer.get(var)
            missing = [v for v in used_vars(value) if self._moves_precise(v)]
            if missing and self._moves_precise(var):
                pending += missing
                continue
            pending.pop()
            if self._moves_precise(var) and isinstance(value, relax.Call):
                self.precise[var] = self.emit(self._with_precise_operands(value), str(var.name))
            elif self._moves_precise(var):
                self.precise[var] = self.precise.get(value, self.lookup(value))
        return self.precise.get(expr, self.lookup(expr))

    def _moves_precise(self, var: relax.Var) -> bool:
        """Whether a mover has a form of more than 8 bits that is not made yet."""
        if var in self.precise or self.finder.form(var).kind != "mover":
            return False
        return any(root in self.precise for root in self.finder.roots(var))

    def _quantize_parameters(self, value: relax.Expr) -> None:
        for operand in used_vars(value):
            is_parameter = any(operand.same_as(p) for p in self.function.params)
            if is_parameter and operand in self.finder.marked and self.lookup(operand) is operand:
                only_output = self.finder.marked[operand] == {qop.OUTPUT}
                role = qop.OUTPUT if only_output else qop.ACTIVATION
                self.precise[operand] = operand
                self.replace(operand, self.emit(self._fake_quant(operand, operand, operand, role)))

    def _source(self, value: relax.Expr) -> relax.Expr:
        """Return what names a value: of a normalization the layer, into which it may be folded."""
        while isinstance(value, relax.TupleGetItem):
            norm = self.producer[value.tuple_value]
            made = self.producer.get(norm.args[0]) if isinstance(norm, relax.Call) else None
            value = made if span_name(made) else norm
        return value

    def _id(self, var: relax.Var, value: relax.Expr, role: str) -> str:
        """Return the name of the fake_quant that a variable has in a role."""
        if (var, role) not in self.ids:
            name = span_name(self._source(value)) or str(var.name)
            if role == qop.OUTPUT and qop.ACTIVATION in self.finder.marked[var]:
                name = f"{name}.output"
            self.ids[var, role] = unused_name(name, self.names)
        return self.ids[var, role]

    def _fake_quant(
        self, var: relax.Var, bound: relax.Expr, value: relax.Expr, role: str
    ) -> relax.Call:
        root = self.finder.group_of(var)
        grouped = role == qop.ACTIVATION and (
            root is not var or any(g.same_as(var) for g in self.finder.groups.values())
        )
        shares = grouped and self.finder.shares_scale(var)
        limit = self.finder.limits.get(var)
        least, greatest = self.finder.extremes(var)
        known = _exact_scale(value) if var in self.finder.exact else {}
        precise = INT16 if self.finder.calibrates else INT32
        return _uncalibrated(
            bound,
            {
                "id": self._id(var, value, role),
                "range_of": "" if limit is None else self._id(limit, self.producer[limit], role),
                "role": role,
                "format": (precise if role == qop.OUTPUT else UINT8).name,
                "scheme": "symmetric" if role == qop.OUTPUT else self.scheme,
                "group": f"concat:{root.name}" if grouped else "",
                "shares": "scale" if shares else "zero_point",
                "nonzero": int(role == qop.OUTPUT and var in self.finder.divisors),
                "least": least,
                "greatest": greatest,
                "axis": -1,
            },
            value,
            **known,
        )

    def _with_quantized_weight(self, call: relax.Call) -> relax.Call | None:
        if not qop.is_call(call, *qop.FLOAT_CONTRACTIONS) or not isinstance(
            call.args[1], tvm.ir.GenericConst
        ):
            return None
        if self.finder.region(call) is None:
            return None
        weight = self._quantized_weight(call)
        return relax.Call(
            call.op, [self.lookup(call.args[0]), weight], call.attrs, call.ty_args, call.span
        )

    def _dynamic_layer(self, call: relax.Call) -> relax.Call:
        """Return a layer that reads its input rounded by its range."""
        x, weight = (self._precise(arg) for arg in call.args)
        if call.args[0] not in self.finder.dynamic.ranged:
            x = self._ranged(call, x)
        if isinstance(weight, tvm.ir.GenericConst):
            weight = self._quantized_weight(call)
        return relax.Call(call.op, [x, weight], call.attrs, call.ty_args, call.span)

    def _ranged(self, layer: relax.Call, x: relax.Expr) -> relax.Expr:
        """Return what several layers may read, under the name of the first."""
        if x not in self.ranged:
            attrs = {"id": f"{span_name(layer)}.input", "fixed": 0}
            call = qop.emit(dyn.DYNAMIC_QUANT, [x], attrs, layer.span)
            self.ranged[x] = self.emit(call, "x_d")
        return self.ranged[x]

    def _quantized_weight(self, call: relax.Call) -> relax.Expr:
        axis = 0 if qop.is_call(call, "relax.nn.conv2d") else 1
        name = span_name(call)
        weight = _uncalibrated(
            call.args[1],
            {
                "id": unused_name(f"{name}.weight", self.names),
                "role": qop.WEIGHT,
                "format": INT8.name,
                "scheme": "symmetric",
                "group": "",
                "axis": axis,
                "groups": int(getattr(call.attrs, "groups", 1)),
            },
            call,
        )
        return self.emit(weight, "weight_q")


def _uncalibrated(
    x: relax.Expr, attrs: dict[str, Any], source: Any, *, scale: float = 0.0, zero_point: int = 0,
    **known: int,
) -> relax.Call:  # fmt: skip
    """Return a fake_quant, without a scale unless that is ``known`` (`_exact_scale`)."""
    unset = {"qmin": 0, "qmax": 0, "calibrated": 0, "fixed": 0}
    constants = np.asarray([scale], np.float32), np.asarray([zero_point], np.int32)
    return qop.emit(
        qop.FAKE_QUANT,
        [x, *(qop.constant(array) for array in constants)],
        attrs | unset | known,
        getattr(source, "span", None),
    )


def _exact_scale(cast: Any) -> dict[str, Any]:
    """Return what the fake_quant of a cast of 8-bit integers knows without calibration."""
    zero, qmin, qmax = EXACT_INPUTS[str(cast.args[0].ty.dtype.dtype)]
    return {
        "scale": 1.0, "zero_point": zero, "qmin": qmin, "qmax": qmax, "calibrated": 1, "fixed": 1,
    }  # fmt: skip


@tvm.ir.transform.module_pass(opt_level=0, name="AnnotateQuantization")
class AnnotateQuantization:
    """Insert uncalibrated fake_quants (see the module's description).

    Parameters
    ----------
    activation_scheme : str
        ``"asymmetric"`` (default; tensors that are never negative come out unsigned with zero
        point 0), ``"symmetric"``, ``"auto"`` (unsigned if never negative, else symmetric), or
        ``"unsigned"`` (zero point 0; `ApplyCalibration` refuses a range with negative numbers).
        Graph outputs are symmetric under each.
    calibrates : bool
        Whether tensors that the model brings no scale for get one. Otherwise they stay float, and
        results of layers that float operators or the user read are sums of 32 bits.
    dynamic : bool
        Whether layers that would stay float read their input rounded by its range, found at run
        time. What the model rounds so is in any case.
    """

    def __init__(
        self,
        activation_scheme: str = "asymmetric",
        *,
        calibrates: bool = True,
        dynamic: bool = False,
    ) -> None:
        self.options = activation_scheme, calibrates, dynamic

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the annotated module."""
        module = constants_as_tensors(module)
        return _Annotator(module, *self.options).rewrite()
