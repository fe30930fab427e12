"""Put a fake_quant on every tensor that the integer graph will hold in 8 bits (L0 -> L1).

Before::

    lv0 = conv2d(x, w); lv1 = add(lv0, bias); lv2 = relu(lv1); lv3 = max_pool2d(lv2)

After::

    x_q = fake_quant(x); w_q = fake_quant(w, axis=0)
    lv0 = conv2d(x_q, w_q); lv1 = add(lv0, bias); lv2 = relu(lv1)
    lv2_q = fake_quant(lv2); lv3 = max_pool2d(lv2_q)

Requires an L0 graph in canonical form (`CanonicalizeOps`). Guarantees that between two fake_quants
there is exactly one of the *regions* that `InsertRequantize` can compute with a single rounding:

* an **accumulator**: convolution, dense, product, window sum or a quantized tensor, times and plus
  constants, plus at most one more quantized tensor (the residual), then a clip, or a PRelu, which
  gives the negative side of a contraction or of a quantized tensor a slope;
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

    lv_q16 = fake_quant(lv) {role: "output", bits: 16}; lv_q = fake_quant(lv_q16) {bits: 8}

What fits no region stays float, and with it the functions of it that make much of small values
(`amplification`), between a dequantize and a quantize, and is listed by
`VerifyIntegerOnly`. All widths are 8 bits until `AssignBitWidths` narrows some.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import numpy as np
import tvm
from tvm import relax

from tvmquant.passes import quantized_ops as qop
from tvmquant.passes.amplification import amplified
from tvmquant.passes.elementwise import BINARY, CAST, ELEMENTWISE, LOGICAL, SELECT
from tvmquant.passes.rewriter import (
    DataflowRewriter,
    bindings_of,
    count_uses,
    span_name,
    used_vars,
)

MOVERS = frozenset(
    {
        "relax.reshape",
        "relax.flatten",
        "relax.permute_dims",
        "relax.squeeze",
        "relax.expand_dims",
        "relax.strided_slice",
        "relax.concat",
        "relax.nn.max_pool2d",
        "relax.max",
        "relax.min",
        "relax.nn.pad",
        "relax.image.resize2d",
        "relax.take",
        "relax.tile",
        "relax.broadcast_to",
    }
)

# movers that hand their source on as it is: what becomes of it decides its width
RESHAPES = (
    "relax.reshape",
    "relax.flatten",
    "relax.permute_dims",
    "relax.squeeze",
    "relax.expand_dims",
)

# Types whose casts to float a fake_quant passes on unchanged: zero point, qmin and qmax.
EXACT_INPUTS = {"uint8": (0, 0, 255), "int8": (128, 0, 255), "bool": (0, 0, 1)}

# of two tensors, and of one along axes
EXTREMES = ("relax.maximum", "relax.minimum")
REDUCED_EXTREMES = ("relax.max", "relax.min")

# of a PRelu in integers
MAX_SLOPE = 16.0

ACTIVATION, OUTPUT, WEIGHT = "activation", "output", "weight"
# asked for by a reshape, for a purpose that only the reader of the reshape knows
UNDECIDED = "undecided"


@dataclass(frozen=True)
class Form:
    """What is known of a tensor while regions are found.

    Parameters
    ----------
    kind : str
        ``float``, ``input`` (a parameter of the graph, as float), ``quantized``, ``mover``,
        ``accumulator``, ``clipped``, ``elementwise`` or ``extreme``.
    sources : tuple of Var
        The tensors a mover moves or an extreme compares, or the one an elementwise chain is a
        function of.
    residual : bool
        Whether an accumulator already has its second tensor term.
    axis : int, optional
        Of an accumulator: the only one that its constants may vary along, the output channels of
        a contraction; None where they may vary along all but the batch.
    """

    kind: str
    sources: tuple[relax.Var, ...] = ()
    residual: bool = False
    axis: int | None = None


def is_scalar(array: Any) -> bool:
    """Whether a constant holds one number."""
    return array is not None and array.size == 1


def is_mover(call: relax.Call) -> bool:
    """Whether a call only moves, picks the greatest of, or averages values of its inputs."""
    if not qop.is_call(call, *MOVERS):
        return False
    if qop.is_call(call, "relax.take"):  # which elements must be known
        return not isinstance(call.args[1], relax.Var)
    if qop.is_call(call, "relax.image.resize2d"):
        linear = str(call.attrs.method) == "linear"
        crops = str(call.attrs.coordinate_transformation_mode) == "tf_crop_and_resize"
        return (linear and not crops) or str(call.attrs.method) == "nearest_neighbor"
    return True


class _RegionFinder:
    """Decide which variables to materialize; one method per kind of operator."""

    def __init__(self, function: relax.Function) -> None:
        self.function = function
        self.uses = count_uses(function)
        self.forms: dict[relax.Var, Form] = {p: _form_of_input(p) for p in function.params}
        self.marked: dict[relax.Var, set[str]] = {}
        # of each mover: the tensors that it moves values of
        self.moved: dict[relax.Var, tuple[relax.Var, ...]] = {}
        self.groups: dict[relax.Var, relax.Var] = {}
        # inputs of 8 bits and booleans, cast to float, which are integers as they are
        self.exact: set[relax.Var] = set()
        # results of operators that stay float
        self.float_results: set[relax.Var] = set()
        # what float operators divide by
        self.divisors: set[relax.Var] = set()
        # read by tables, which take one scale
        self.chain_sources: list[relax.Var] = []
        self.comparisons: set[relax.Var] = set()
        # the extreme that a tensor is made for only
        self.limits: dict[relax.Var, relax.Var] = {}
        # constants that pads put beside a tensor
        self.pad_values: list[tuple[relax.Var, float]] = []
        # what movers read, also where they are float
        self.operands: dict[relax.Var, tuple[relax.Var, ...]] = {}
        self.ends = _only_for_the_user(function, self.uses)
        self.amplified = amplified(function, divisors=True)
        for var, value in bindings_of(function):
            form = self.forms[var] = self._form(var, value)
            if form.kind == "mover":
                moved = (root for source in form.sources for root in self.roots(source))
                self.moved[var] = tuple(dict.fromkeys(moved))
            if self.forms[var].kind == "extreme":
                self._limit(var)
        body = function.body.body
        for output in used_vars(body):
            if not self.is_float(output):
                self.request(output, OUTPUT)

    def is_float(self, var: relax.Var) -> bool:
        """Whether ``var`` is float, as are inputs and what moves them until integers are asked."""
        return all(self.form(root).kind in ("float", "input") for root in self.roots(var))

    def form(self, var: relax.Var) -> Form:
        return self.forms[var]

    def request(self, var: relax.Var, role: str) -> None:
        """Ask that ``var`` be held as integers; movers and extremes hand the request on.

        Booleans are never held: a comparison is a part of the tables that read it, or a table.
        """
        pending = [var]
        while pending:
            asked = pending.pop()
            if is_boolean(asked) or asked in self.exact:
                continue
            if asked in self.moved:
                pending += self.moved[asked]
                continue
            form, roles = self.form(asked), self.marked.setdefault(asked, set())
            if asked in self.comparisons and role not in roles:
                pending += form.sources
            roles.add(role)
            if form.kind != "quantized":
                self.forms[asked] = Form("quantized", form.sources)

    def roots(self, var: relax.Var) -> Iterable[relax.Var]:
        """Return the materialized tensors whose scale ``var`` carries."""
        found: tuple[relax.Var, ...] = self.moved.get(var, (var,))
        return found

    def group_of(self, var: relax.Var) -> relax.Var:
        while var in self.groups:
            var = self.groups[var]
        return var

    def _unify(self, variables: list[relax.Var]) -> None:
        first, *rest = [self.group_of(v) for v in variables]
        for other in rest:
            if not self.group_of(other).same_as(self.group_of(first)):
                self.groups[self.group_of(other)] = self.group_of(first)

    def shares_scale(self, var: relax.Var) -> bool:
        """Whether a reader of the group of ``var`` takes one scale only."""
        groups = {
            self.group_of(root) for source in self.chain_sources for root in self.roots(source)
        }
        return self.group_of(var) in groups

    def extremes(self, var: relax.Var) -> tuple[float, float]:
        """Return the least and greatest constant that pads put beside ``var``; 0 is one of them."""
        values = [v for source, v in self.pad_values if var in self._held(source)]
        return min([0.0, *values]), max([0.0, *values])

    def _held(self, var: relax.Var) -> Iterator[relax.Var]:
        """Yield the materialized tensors whose integers ``var`` moves, also where it was float."""
        pending, seen = [var], {var}
        while pending:
            moved = pending.pop()
            if moved in self.marked:
                yield moved
                continue
            sources = [v for v in self.operands.get(moved, ()) if v not in seen]
            pending += sources
            seen.update(sources)

    def _absorbs(self, var: relax.Var) -> bool:
        return self.uses[var] == 1

    def _form(self, var: relax.Var, value: relax.Expr) -> Form:
        if isinstance(value, relax.Var) or (isinstance(value, relax.Call) and is_mover(value)):
            self.operands[var] = tuple(used_vars(value))
        if qop.is_call(value, "relax.nn.pad"):
            padding = float(getattr(value.attrs, "pad_value", 0.0))
            self.pad_values += [(source, padding) for source in self.operands.get(var, ())]
        if isinstance(value, relax.Var):
            is_float = self.form(value).kind == "float"
            return Form("float") if is_float else Form("mover", (value,))
        if not isinstance(value, relax.Call):
            return Form("float")
        params = list(self.function.params)
        if is_exact_cast(value, params) and self.form(value.args[0]).kind == "float":
            self.exact.add(var)
            self.marked[var] = {ACTIVATION}
            return Form("quantized")
        if is_input_cast(value, params):
            return Form("input")
        if var in self.ends and self._continues_floats(value):
            return Form("float")
        if self._is_sensitive(value):
            self.float_results.add(var)
            return Form("float")
        handler = None if self._reads_integers(value) else self._handler(value)
        form = handler(value) if handler else None
        if form is not None:
            return form
        if is_repeated_constant(value):
            return Form("input")
        self.float_results.add(var)
        for operand in used_vars(value):
            if not self.is_float(operand):
                self.request(operand, OUTPUT)
        if qop.is_call(value, "relax.divide") and isinstance(value.args[1], relax.Var):
            self.divisors.update(self.roots(value.args[1]))
        return Form("float")

    def _reads_integers(self, call: relax.Call) -> bool:
        """Whether an operand is no number that may be rounded: an index, a mask of the input."""
        return any(
            not qop.is_float(v) and self.form(v).kind in ("float", "mover") for v in used_vars(call)
        )

    def _continues_floats(self, call: relax.Call) -> bool:
        floats = all(self.form(v).kind == "float" for v in used_vars(call))
        return floats and qop.is_call(call, *ELEMENTWISE)

    def _is_sensitive(self, call: relax.Call) -> bool:
        """Whether a function of the result of a float operator would lose its small values."""
        read = used_vars(call)
        known = len(read) == 1 and read[0] in self.amplified and read[0] in self.float_results
        return known and qop.is_call(call, *ELEMENTWISE, *RESHAPES)

    def _handler(self, call: relax.Call) -> Callable[[relax.Call], Form | None] | None:
        if qop.is_call(call, *REDUCED_EXTREMES):
            return self._compare
        if is_mover(call):
            return self._move
        table: dict[str, Callable[[relax.Call], Form | None]] = {
            "relax.nn.conv2d": self._contract,
            "relax.nn.conv2d_transpose": self._contract,
            "relax.matmul": self._contract,
            "relax.mean": self._pool,
            "relax.nn.avg_pool2d": self._pool,
            "relax.nn.relu": self._clip,
            "relax.clip": self._clip,
            "relax.nn.prelu": self._prelu,
            CAST: self._cast,
            SELECT: self._select,
        }
        if call.op.name in table:
            return table[call.op.name]
        return self._elementwise if call.op.name in ELEMENTWISE else None

    def _contract(self, call: relax.Call) -> Form | None:
        weight = qop.constant_array(call.args[1])
        if weight is None or (qop.is_call(call, "relax.matmul") and weight.ndim != 2):
            return None
        self.request(call.args[0], ACTIVATION)
        return Form("accumulator", axis=output_axis(call))

    def _pool(self, call: relax.Call) -> Form | None:
        if not is_window_mean(call):
            return None
        self.request(call.args[0], ACTIVATION)
        return Form("accumulator")

    def _clip(self, call: relax.Call) -> Form:
        operand = call.args[0]
        form = self.form(operand)
        if form.kind in ("accumulator", "clipped") and self._absorbs(operand):
            return replace(form, kind="clipped")
        return self._chain(operand)

    def _prelu(self, call: relax.Call) -> Form | None:
        """Give a region two slopes, if its sign is that of one sum of integers."""
        if not has_usable_slopes(call):
            return None
        operand = call.args[0]
        form = self.form(operand)
        layer = form.kind == "accumulator" and form.axis == int(call.attrs.axis)
        if not (layer and not form.residual and self._absorbs(operand)):
            self.request(operand, ACTIVATION)
            form = Form("accumulator")
        return replace(form, kind="clipped")

    def _move(self, call: relax.Call) -> Form | None:
        operands = used_vars(call)
        if not operands or len(operands) != len(_tensor_fields(call)):
            return None  # a constant among the inputs of a concat
        if all(self.form(v).kind == "float" for v in operands):
            return None
        if not all(self.is_float(v) for v in operands):
            role = UNDECIDED if qop.is_call(call, *RESHAPES) else ACTIVATION
            for operand in operands:
                if self.is_float(operand) or self.form(operand).kind not in ("quantized", "mover"):
                    self.request(operand, role)
        if len(operands) > 1:
            self._unify([r for v in operands for r in self.roots(v)])
        return Form("mover", tuple(operands))

    def _compare(self, call: relax.Call) -> Form | None:
        """Take the greatest or least of what is held in as many bits as the result."""
        operands = used_vars(call)
        if all(self.form(v).kind == "float" for v in operands):
            return None
        moves = all(self.form(v).kind in ("quantized", "mover") for v in operands)
        of_one = moves and len({root for v in operands for root in self.roots(v)}) == 1
        return Form("mover" if of_one else "extreme", tuple(operands))

    def _limit(self, extreme: relax.Var) -> None:
        """Note what is made for one extreme only."""
        self.comparisons.add(extreme)
        for source in self.form(extreme).sources:
            if self._absorbs(source) and self.form(source).kind not in ("quantized", "mover"):
                self.limits[source] = extreme

    def _chain(self, operand: relax.Var) -> Form:
        """Extend an elementwise chain, or start one at a materialized tensor."""
        form = self.form(operand)
        if form.kind == "elementwise" and self._absorbs(operand):
            return form
        self.request(operand, ACTIVATION)
        self.chain_sources.append(operand)
        return Form("elementwise", (operand,))

    def _elementwise(self, call: relax.Call) -> Form | None:
        if len(call.args) == 1 or call.op.name not in {*BINARY, *LOGICAL}:
            return self._chain(call.args[0])
        arrays = [qop.constant_array(a) for a in call.args]
        tensors = [a for a in call.args if isinstance(a, relax.Var)]
        chain = self._common_chain(tensors)
        if chain is not None:
            return chain
        if len(tensors) == 1:
            constant = arrays[0] if arrays[0] is not None else arrays[1]
            return self._with_constant(call, tensors[0], constant, arrays[0] is not None)
        if qop.is_call(call, "relax.add", "relax.subtract", "relax.multiply"):
            return self._two_tensors(call, *tensors)
        return self._compare(call) if qop.is_call(call, *EXTREMES) else None

    def _with_constant(
        self, call: relax.Call, tensor: relax.Var, constant: Any, constant_first: bool
    ) -> Form | None:
        form = self.form(tensor)
        if not keeps_shape(call, tensor):
            return None
        along_layer = is_linear(call, constant, constant_first, form.axis)
        if along_layer and form.kind == "accumulator" and self._absorbs(tensor):
            return form
        rescales = qop.is_call(call, "relax.multiply", "relax.divide") and not constant_first
        positive = is_scalar(constant) and float(constant.reshape(())) > 0
        if rescales and positive and form.kind == "clipped" and self._absorbs(tensor):
            return form
        if is_scalar(constant):
            return self._chain(tensor)
        if is_linear(call, constant, constant_first):
            self.request(tensor, ACTIVATION)
            return Form("accumulator")
        return None

    def _two_tensors(self, call: relax.Call, left: relax.Var, right: relax.Var) -> Form | None:
        if qop.is_call(call, "relax.multiply"):
            self.request(left, ACTIVATION)
            self.request(right, ACTIVATION)
            return Form("accumulator")
        open_terms = [
            v
            for v in (left, right)
            if self.form(v).kind == "accumulator" and not self.form(v).residual and self._absorbs(v)
        ]
        # a sum that broadcasts is no epilogue: what it adds is stored before it, in 8 bits
        alike = all(keeps_shape(call, v) for v in (left, right))
        kept = open_terms[-1] if open_terms and alike else None
        for operand in (left, right):
            if kept is None or not operand.same_as(kept):
                self.request(operand, ACTIVATION)
        axis = None if kept is None else self.form(kept).axis
        return Form("accumulator", residual=True, axis=axis)

    def _cast(self, call: relax.Call) -> Form | None:
        """Go on with a chain whose booleans become the numbers 0 and 1."""
        form = self.form(call.args[0])
        known = form.kind == "elementwise" and is_boolean(call.args[0])
        return form if known and str(call.attrs.dtype) == "float32" else None

    def _select(self, call: relax.Call) -> Form | None:
        """Choose between functions of one tensor by a comparison of it: a function of it."""
        constants = [a for a in call.args if not isinstance(a, relax.Var)]
        sources = {self._chain_source(v) for v in used_vars(call)}
        if len(sources) != 1 or not all(is_scalar(qop.constant_array(c)) for c in constants):
            return None
        source = sources.pop()
        return None if source is None else Form("elementwise", (source,))

    def _common_chain(self, variables: list[relax.Var]) -> Form | None:
        """Return what is a function of one tensor because its operands are: x * sigmoid(x)."""
        sources = {self._chain_source(v) for v in variables}
        if len(variables) < 2 or len(sources) > 1 or not self._is_chain(*variables):
            return None
        source = sources.pop()
        return None if source is None else Form("elementwise", (source,))

    def _chain_source(self, var: relax.Var) -> relax.Var | None:
        form = self.form(var)
        if form.kind == "elementwise":
            return form.sources[0] if self._absorbs(var) or is_boolean(var) else None
        return var if form.kind in ("quantized", "mover") else None

    def _is_chain(self, *variables: relax.Var) -> bool:
        return any(self.form(v).kind == "elementwise" for v in variables)


def _only_for_the_user(function: relax.Function, uses: Counter[relax.Var]) -> set[relax.Var]:
    """Return what is an output of the graph, or read by elementwise operators up to one, only.

    Behind a float operator they stay float: rounding in between would only lose accuracy.
    """
    reads = Counter(used_vars(function.body.body))
    found: set[relax.Var] = set()
    for var, value in reversed(list(bindings_of(function))):
        if isinstance(value, relax.Var):  # another name
            reads[value] += reads[var]
        elif reads[var] == uses[var]:
            found.add(var)
            if qop.is_call(value, *ELEMENTWISE, *RESHAPES):
                reads.update(used_vars(value))
    return found


def output_axis(call: relax.Call) -> int:
    """Return the axis of a contraction's output channels."""
    return len(call.ty.shape.values) - 1 if qop.is_call(call, "relax.matmul") else 1


def varies_along(constant: Any, rank: int, axis: int | None) -> bool:
    """Whether a constant is a scalar, or varies along one axis (None: any but the batch) only."""
    if constant is None:
        return False
    if constant.size == 1:
        return True
    shape = (1,) * (rank - constant.ndim) + constant.shape
    fixed = [0] if axis is None else [i for i in range(rank) if i != axis]
    return len(shape) == rank and all(shape[i] == 1 for i in fixed)


def has_usable_slopes(call: relax.Call) -> bool:
    """Whether the slopes of a PRelu are known, and not so steep that one shift fits no both."""
    slopes = qop.constant_array(call.args[1])
    return slopes is not None and bool(np.all(np.abs(slopes) <= MAX_SLOPE))


def keeps_shape(call: relax.Call, tensor: relax.Var) -> bool:
    """Whether an operation with a constant leaves the tensor's shape as it is."""
    return [str(d) for d in call.ty.shape.values] == [str(d) for d in tensor.ty.shape.values]


def is_input_cast(value: Any, parameters: list[relax.Var]) -> TypeGuard[relax.Call]:
    """Whether a value is an input of integers as float."""
    to_float = qop.is_call(value, CAST) and str(value.attrs.dtype) == "float32"
    return to_float and value.args[0] in parameters


def is_exact_cast(value: Any, parameters: list[relax.Var]) -> TypeGuard[relax.Call]:
    """Whether a value is an input of 8-bit integers as float, or a comparison of integers."""
    if not qop.is_call(value, CAST) or str(value.attrs.dtype) != "float32":
        return False
    operand = value.args[0]
    is_input = operand in parameters and str(operand.ty.dtype.dtype) in EXACT_INPUTS
    return is_input or is_boolean(operand)


def is_boolean(tensor: relax.Expr) -> bool:
    """Whether a value is a tensor of truth values."""
    return isinstance(tensor.ty, relax.TensorType) and str(tensor.ty.dtype.dtype) == "bool"


def is_linear(
    call: relax.Call, constant: Any, constant_first: bool, axis: int | None = None
) -> bool:
    """Whether a call adds or multiplies constants that vary along an axis (`varies_along`)."""
    if not varies_along(constant, len(call.ty.shape.values), axis):
        return False
    if qop.is_call(call, "relax.subtract", "relax.divide"):
        return not constant_first
    return qop.is_call(call, "relax.add", "relax.multiply")


def is_window_mean(call: relax.Call) -> bool:
    """Whether a call averages over windows of the two spatial axes, or over one or both whole."""
    if not qop.is_call(call, "relax.mean"):
        return str(call.attrs.layout) == "NCHW"
    rank = len(call.args[0].ty.shape.values)
    axes = sorted(int(a) % rank for a in (call.attrs.axis or range(rank)))
    return rank == 4 and axes in ([2], [3], [2, 3]) and bool(call.attrs.keepdims)


def is_repeated_constant(value: Any) -> TypeGuard[relax.Call]:
    """Whether a value is a constant, written as a tensor."""
    return qop.is_call(value, "relax.broadcast_to") and isinstance(
        value.args[0], tvm.ir.GenericConst
    )


def is_embedding(value: Any) -> TypeGuard[relax.Call]:
    """Whether a value is rows of a constant table, which ones the data say."""
    return qop.is_call(value, "relax.take") and isinstance(value.args[0], tvm.ir.GenericConst)


def _tensor_fields(call: relax.Call) -> list[relax.Expr]:
    first = call.args[0]
    return list(first.fields) if isinstance(first, relax.Tuple) else [first]


def _form_of_input(param: relax.Var) -> Form:
    is_tensor = isinstance(param.ty, relax.TensorType)
    return Form("input" if is_tensor and str(param.ty.dtype.dtype) == "float32" else "float")


class _ConstantsAsTensors(DataflowRewriter):
    """Bind the constants that a concat joins with tensors, which are then quantized like these.

    So are constants that vary and bound a tensor: those of one number are clips, or functions.
    """

    def visit_binding(self, _var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if qop.is_call(value, *EXTREMES):
            return self._bounded(value)
        if not qop.is_call(value, "relax.concat") or not isinstance(value.args[0], relax.Tuple):
            return None
        fields = [self._tensor(field, value) for field in value.args[0].fields]
        return relax.Call(value.op, [relax.Tuple(fields)], value.attrs, None, value.span)

    def _bounded(self, call: relax.Call) -> relax.Call | None:
        arrays = [qop.constant_array(operand) for operand in call.args]
        if all(array is None or array.size == 1 for array in arrays):
            return None
        args = [self._tensor(operand, call) for operand in call.args]
        return relax.Call(call.op, args, call.attrs, None, call.span)

    def _tensor(self, field: relax.Expr, call: relax.Call) -> relax.Expr:
        if not isinstance(field, tvm.ir.GenericConst) or not qop.is_float(field):
            return self.lookup(field)
        whole = relax.op.broadcast_to(field, field.ty.shape)
        return self.emit(relax.Call(whole.op, whole.args, whole.attrs, None, call.span), "constant")


class _Annotator(DataflowRewriter):
    def __init__(self, module: tvm.IRModule, activation_scheme: str) -> None:
        super().__init__(module)
        self.finder = _RegionFinder(self.function)
        self.scheme = activation_scheme
        self.names: set[str] = set()
        self.ids: dict[tuple[relax.Var, str], str] = {}
        self.producer = dict(bindings_of(self.function))
        # of tensors that are read in 8 bits and otherwise: what the other readers get
        self.precise: dict[relax.Var, relax.Expr] = {}

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        self._quantize_parameters(value)
        new = self._with_quantized_weight(value) if isinstance(value, relax.Call) else None
        roles = self.finder.marked.get(var)
        both = roles is not None and roles >= {ACTIVATION, OUTPUT}
        precise = var in self.finder.float_results or (both and var in self.finder.comparisons)
        if precise and isinstance(value, relax.Call):
            new = self._with_precise_operands(value)
        if roles is None:
            return new
        bound = self.emit(new if new is not None else self.copy(value), str(var.name))
        if both:
            bound = self.emit(self._fake_quant(var, bound, value, OUTPUT), f"{var.name}_q16")
            self.precise[var] = bound
        role = ACTIVATION if ACTIVATION in roles or OUTPUT not in roles else OUTPUT
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
                only_output = self.finder.marked[operand] == {OUTPUT}
                role = OUTPUT if only_output else ACTIVATION
                self.precise[operand] = operand
                self.replace(operand, self.emit(self._fake_quant(operand, operand, operand, role)))

    def _unique(self, name: str) -> str:
        unique, count = name, 1
        while unique in self.names:
            count += 1
            unique = f"{name}:{count}"
        self.names.add(unique)
        return unique

    def _id(self, var: relax.Var, value: relax.Expr, role: str) -> str:
        """Return the name of the fake_quant that a variable has in a role."""
        if (var, role) not in self.ids:
            name = span_name(value) or str(var.name)
            if role == OUTPUT and ACTIVATION in self.finder.marked[var]:
                name = f"{name}.output"
            self.ids[var, role] = self._unique(name)
        return self.ids[var, role]

    def _fake_quant(
        self, var: relax.Var, bound: relax.Expr, value: relax.Expr, role: str
    ) -> relax.Call:
        root = self.finder.group_of(var)
        grouped = role == ACTIVATION and (
            root is not var or any(g.same_as(var) for g in self.finder.groups.values())
        )
        shares = grouped and self.finder.shares_scale(var)
        limit = self.finder.limits.get(var)
        least, greatest = self.finder.extremes(var)
        known = _exact_scale(value) if var in self.finder.exact else {}
        return _uncalibrated(
            bound,
            {
                "id": self._id(var, value, role),
                "range_of": "" if limit is None else self._id(limit, self.producer[limit], role),
                "role": role,
                "bits": 16 if role == OUTPUT else 8,
                "scheme": "symmetric" if role == OUTPUT else self.scheme,
                "group": f"concat:{root.name}" if grouped else "",
                "shares": "scale" if shares else "zero_point",
                "nonzero": int(role == OUTPUT and var in self.finder.divisors),
                "least": least,
                "greatest": greatest,
                "axis": -1,
            },
            value,
            **known,
        )

    def _with_quantized_weight(self, call: relax.Call) -> relax.Call | None:
        if not qop.is_call(
            call, "relax.nn.conv2d", "relax.nn.conv2d_transpose", "relax.matmul"
        ) or not isinstance(call.args[1], tvm.ir.GenericConst):
            return None
        if self.finder._contract(call) is None:
            return None
        axis = 0 if qop.is_call(call, "relax.nn.conv2d") else 1
        name = span_name(call)
        weight = _uncalibrated(
            call.args[1],
            {
                "id": self._unique(f"{name}.weight"),
                "role": WEIGHT,
                "bits": 8,
                "scheme": "symmetric",
                "group": "",
                "axis": axis,
                "groups": int(getattr(call.attrs, "groups", 1)),
            },
            call,
        )
        quantized = self.emit(weight, "weight_q")
        return relax.Call(
            call.op, [self.lookup(call.args[0]), quantized], call.attrs, call.ty_args, call.span
        )


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
    """

    def __init__(self, activation_scheme: str = "asymmetric") -> None:
        self.activation_scheme = activation_scheme

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the annotated module."""
        module = _ConstantsAsTensors(module).rewrite()
        return _Annotator(module, self.activation_scheme).rewrite()
