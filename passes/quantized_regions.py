"""Find the regions of a float graph that one rounding each can compute in integers.

`AnnotateQuantization` says what regions there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from tvm import relax

from tvmquant import formats
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of, count_uses, used_vars
from tvmquant.passes.amplification import amplified
from tvmquant.passes.dynamic_layers import DynamicLayers
from tvmquant.passes.elementwise import ELEMENTWISE
from tvmquant.passes.region_kind import Form
from tvmquant.passes.region_operators import (
    EXACT_INPUTS,
    RESHAPES,
    is_boolean,
    is_exact_cast,
    is_input_cast,
    is_mover,
    is_repeated_constant,
)
from tvmquant.passes.regions import kinds_of


class NotHeldError(Exception):
    """A tensor that a region reads is not held in 8 bits, and gets no scale."""


class RegionFinder:
    """Decide which variables to materialize, by asking the kinds of regions (`regions.KINDS`).

    Parameters
    ----------
    function : relax.Function
    calibrates : bool
        Whether what the model brings no scale for gets one. Otherwise regions end at the model's
        own fake_quants only, or in sums that are kept whole.
    dynamic : bool
        Whether layers that would stay float round their input by its range, found at run time.
    """

    def __init__(
        self, function: relax.Function, *, calibrates: bool = True, dynamic: bool = False
    ) -> None:
        self.function = function
        self.calibrates = calibrates
        self.dynamic = DynamicLayers(function, chosen=dynamic)
        # what the model's own fake_quants give
        self.imported: set[relax.Var] = set()
        # of these, what rounds ties to even: of models of others
        self.even: set[relax.Var] = set()
        # attributes of those of weights
        self.imported_weights: dict[relax.Var, dict[str, Any]] = {}
        # of these, what has more bits than kernels read
        self.wide: set[relax.Var] = set()
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
                self.request(output, qop.OUTPUT)

    def is_float(self, var: relax.Var) -> bool:
        """Whether ``var`` is float, as are inputs and what moves them until integers are asked."""
        return all(self.form(root).kind in ("float", "input") for root in self.roots(var))

    def form(self, var: relax.Var) -> Form:
        """Return what is known of ``var``."""
        return self.forms[var]

    def is_wide(self, var: relax.Var) -> bool:
        """Whether a tensor is held in 16 bits by a scale of the model's."""
        return any(root in self.wide for root in self.roots(var))

    def request(self, var: relax.Var, role: str) -> None:
        """Ask that ``var`` be held as integers; movers and extremes hand the request on.

        Booleans are never held: a comparison is a part of the tables that read it, or a table.

        Raises
        ------
        NotHeldError
            If no scale is known and none is calibrated; nothing was asked for then.
        """
        pending = [var]
        while pending:
            asked = pending.pop()
            if is_boolean(asked) or asked in self.exact or asked in self.imported:
                continue
            if asked in self.moved:
                pending += self.moved[asked]
                continue
            if not self.calibrates and not self._keeps_sums(asked, role):
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

    def unify(self, variables: list[relax.Var]) -> None:
        """Let tensors share a zero point."""
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

    def absorbs(self, var: relax.Var) -> bool:
        """Whether the one reader of ``var`` may take it in."""
        return self.uses[var] == 1

    def _keeps_sums(self, var: relax.Var, role: str) -> bool:
        """Whether a tensor without a scale is held as the sums that make it."""
        if role != qop.OUTPUT:
            raise NotHeldError
        form = self.form(var)
        return form.kind in ("accumulator", "sloped", "clipped") or var in self.marked

    def _imported(self, var: relax.Var, call: relax.Call) -> Form:
        """Note a fake_quant of the model."""
        attrs = qop.attributes(call)
        if attrs["role"] == qop.WEIGHT:
            self.imported_weights[var] = attrs
            return Form("float")
        self.imported.add(var)
        if attrs.get("ties") == "even":
            self.even.add(var)
        if formats.parse(attrs["format"]).bits > formats.MOST_BITS:
            self.wide.add(var)
        return Form("quantized")

    def _form(self, var: relax.Var, value: relax.Expr) -> Form:
        if isinstance(value, relax.Var) or (isinstance(value, relax.Call) and is_mover(value)):
            self.operands[var] = tuple(used_vars(value))
        if qop.is_call(value, "relax.nn.pad"):
            padding = float(getattr(value.attrs, "pad_value", 0.0))
            self.pad_values += [(source, padding) for source in self.operands.get(var, ())]
        if self.dynamic.takes(var, value):
            return self._float(var, value)
        if isinstance(value, relax.Var):
            is_float = self.form(value).kind == "float"
            return Form("float") if is_float else Form("mover", (value,))
        if isinstance(value, relax.TupleGetItem) and value.index == 0:
            return self.form(value.tuple_value)  # of a normalization
        if not isinstance(value, relax.Call):
            return Form("float")
        if qop.is_call(value, qop.FAKE_QUANT):
            return self._imported(var, value)
        params = list(self.function.params)
        is_exact = is_exact_cast(value, params) and var not in self.padded_beyond
        if is_exact and self.form(value.args[0]).kind == "float":
            self.exact.add(var)
            self.marked[var] = {qop.ACTIVATION}
            return Form("quantized")
        if is_input_cast(value, params):
            return Form("input")
        ends = var in self.ends and self._continues_floats(value)
        if ends or self._is_sensitive(value):
            self.float_results.add(var)
            return Form("float")
        if not self._reads_integers(value):
            form = self.region(value)
            if form is not None:
                return form
        if is_repeated_constant(value):
            return Form("input")
        self.dynamic.choose(var, value)
        return self._float(var, value)

    def _float(self, var: relax.Var, value: relax.Expr) -> Form:
        """Let a value be computed in float, and ask for what it reads."""
        self.float_results.add(var)
        for operand in used_vars(value):
            if not self.is_float(operand):
                self.request(operand, qop.OUTPUT)
        if qop.is_call(value, "relax.divide") and isinstance(value.args[1], relax.Var):
            self.divisors.update(self.roots(value.args[1]))
        return Form("float")

    def region(self, call: relax.Call) -> Form | None:
        """Return what a call gives as a part of a region; None where it stays float."""
        wide = any(self.is_wide(v) for v in used_vars(call))
        try:
            for kind in kinds_of(str(call.op.name)):
                if wide and not kind.takes_wide:
                    continue
                form = kind.form(self, call)
                if form is not None and form.kind == "extreme" and not self.calibrates:
                    for source in form.sources:
                        self.request(source, qop.ACTIVATION)
                if form is not None:
                    return form
        except NotHeldError:
            pass
        return None

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

    def _limit(self, extreme: relax.Var) -> None:
        """Note what is made for one extreme only."""
        self.comparisons.add(extreme)
        for source in self.form(extreme).sources:
            if self.absorbs(source) and self.form(source).kind not in ("quantized", "mover"):
                self.limits[source] = extreme


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


def _form_of_input(param: relax.Var) -> Form:
    is_tensor = isinstance(param.ty, relax.TensorType)
    return Form("input" if is_tensor and str(param.ty.dtype.dtype) == "float32" else "float")
