"""Find the regions of a float graph that one rounding each can compute in integers.

`AnnotateQuantization` says what regions there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of, count_uses, used_vars
from tvmquant.passes.amplification import amplified
from tvmquant.passes.elementwise import BINARY, CAST, ELEMENTWISE, LOGICAL, SELECT
from tvmquant.passes.region_operators import (
    ACTIVATION,
    EXACT_INPUTS,
    EXTREMES,
    OUTPUT,
    REDUCED_EXTREMES,
    RESHAPES,
    UNDECIDED,
    has_usable_slopes,
    is_boolean,
    is_exact_cast,
    is_input_cast,
    is_linear,
    is_mover,
    is_repeated_constant,
    is_scalar,
    is_window_mean,
    keeps_shape,
    output_axis,
)


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


class RegionFinder:
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
        self.padded_beyond = _padded_beyond(function)
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
        """Return what is known of ``var``."""
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
        """Return the tensor that stands for those which share a zero point with ``var``."""
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
        is_exact = is_exact_cast(value, params) and var not in self.padded_beyond
        if is_exact and self.form(value.args[0]).kind == "float":
            self.exact.add(var)
            self.marked[var] = {ACTIVATION}
            return Form("quantized")
        if is_input_cast(value, params):
            return Form("input")
        ends = var in self.ends and self._continues_floats(value)
        if ends or self._is_sensitive(value):
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
            "relax.nn.leakyrelu": self._leaky_relu,
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
        if self._is_one_layer(operand) and self.form(operand).axis == int(call.attrs.axis):
            return replace(self.form(operand), kind="clipped")
        self.request(operand, ACTIVATION)
        return Form("clipped")

    def _leaky_relu(self, call: relax.Call) -> Form:
        """Give the sum of a layer two slopes, like a PRelu; of any other tensor it is a table."""
        operand = call.args[0]
        if self._is_one_layer(operand) and has_usable_slopes(call):
            return replace(self.form(operand), kind="clipped")
        return self._chain(operand)

    def _is_one_layer(self, operand: relax.Var) -> bool:
        """Whether an operand is a contraction, times and plus constants, that is not kept."""
        form = self.form(operand)
        layer = form.kind == "accumulator" and form.axis is not None and not form.residual
        return layer and self._absorbs(operand)

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


def _padded_beyond(function: relax.Function) -> set[relax.Var]:
    """Return the casts of 8-bit integers beside which pads put numbers beyond these."""
    params = list(function.params)
    # of what only moves them: the casts
    moved: dict[relax.Var, set[relax.Var]] = {}
    types: dict[relax.Var, str] = {}
    found: set[relax.Var] = set()
    for var, value in bindings_of(function):
        if is_exact_cast(value, params):
            moved[var] = {var}
            types[var] = str(value.args[0].ty.dtype.dtype)
        elif isinstance(value, relax.Var) or (isinstance(value, relax.Call) and is_mover(value)):
            moved[var] = {cast for v in used_vars(value) for cast in moved.get(v, ())}
        if qop.is_call(value, "relax.nn.pad"):
            padding = float(getattr(value.attrs, "pad_value", 0.0))
            for cast in moved[var]:
                zero, qmin, qmax = EXACT_INPUTS[types[cast]]
                if not qmin <= padding + zero <= qmax:
                    found.add(cast)
    return found


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


def _tensor_fields(call: relax.Call) -> list[relax.Expr]:
    first = call.args[0]
    return list(first.fields) if isinstance(first, relax.Tuple) else [first]


def _form_of_input(param: relax.Var) -> Form:
    is_tensor = isinstance(param.ty, relax.TensorType)
    return Form("input" if is_tensor and str(param.ty.dtype.dtype) == "float32" else "float")
