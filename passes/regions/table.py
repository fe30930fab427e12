"""Functions of one tensor of 256 levels: tables, exact by construction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import tvm
from tvm import relax

from tvmquant.arithmetic import FloatArray
from tvmquant.formats import Binary
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import used_vars
from tvmquant.passes.accumulator import Quantized
from tvmquant.passes.elementwise import BINARY, CAST, ELEMENTWISE, LOGICAL, SELECT, evaluate
from tvmquant.passes.region_kind import Form, Open, RegionKind, Value
from tvmquant.passes.region_operators import is_boolean, is_scalar, keeps_shape

if TYPE_CHECKING:
    from tvmquant.passes.insert_requantize import Integerizer
    from tvmquant.passes.quantized_regions import RegionFinder


@dataclass(frozen=True)
class Chain(Open):
    """A function of one 8-bit tensor with one scale: its real values at the 256 inputs."""

    source: Quantized
    values: FloatArray

    @classmethod
    def identity(cls, source: Quantized) -> Chain:
        """Return the chain x -> x."""
        steps = np.arange(256, dtype=np.float64) - source.zero_point
        return cls(source, steps * source.scale)

    def rounded(
        self, integerizer: Integerizer, to: Quantized, name: str, call: relax.Call
    ) -> Quantized:
        """Emit the table, half to even."""
        real = np.nan_to_num(self.values, nan=0.0, posinf=np.inf, neginf=-np.inf)
        if isinstance(to.format, Binary):
            upper = real > to.middle if to.strict else real >= to.middle
            values = np.where(upper, to.qmax, to.qmin).astype(to.dtype)
        else:
            steps = np.rint(np.clip(real / to.scale, -(2.0**31), 2.0**31)) + to.zero_point
            values = np.clip(steps, to.qmin, to.qmax).astype(to.dtype)
        levels = slice(self.source.qmin, self.source.qmax + 1)
        reached = values[levels]
        qmin, qmax = int(reached.min()), int(reached.max())
        same = self.source.dtype == to.dtype and np.array_equal(reached, np.arange(256)[levels])
        expr = self.source.expr
        if not same:  # else only what the integers stand for is another
            args = [expr, qop.constant(values)]
            attrs = {"id": name, "out_dtype": to.dtype}
            expr = integerizer.emit(qop.emit(qop.TABLE, args, attrs, call.span))
        found = replace(to, expr=expr, factors=None, qmin=qmin, qmax=qmax)
        return integerizer.rescaled(found, to, name, call)

    def real(self, integerizer: Integerizer, name: str) -> relax.Var:
        """Look the function's values up, for an operator that reads floats."""
        args = [self.source.expr, qop.constant(self.values.astype(np.float32))]
        attrs = {"id": f"{name}.table", "out_dtype": "float32"}
        return integerizer.emit(qop.emit(qop.TABLE, args, attrs))

    def truth(self, integerizer: Integerizer, name: str) -> relax.Var:
        """Look a comparison up, for an operator that reads booleans."""
        args = [self.source.expr, qop.constant(np.asarray(self.values, np.uint8))]
        attrs = {"id": f"{name}.table", "out_dtype": "uint8"}
        found = integerizer.emit(qop.emit(qop.TABLE, args, attrs))
        return integerizer.emit(relax.op.astype(found, "bool"))


class TableRegion(RegionKind):
    """A chain of elementwise functions of one tensor, comparisons and choices included."""

    operators = frozenset({*ELEMENTWISE, CAST, SELECT, "relax.clip"})

    def form(self, finder: RegionFinder, call: relax.Call) -> Form | None:
        """Extend a chain, or start one at a tensor that is held."""
        if qop.is_call(call, CAST):
            return self._cast(finder, call)
        if qop.is_call(call, SELECT):
            return self._select(finder, call)
        if len(call.args) == 1 or call.op.name not in {*BINARY, *LOGICAL}:
            return _extended(finder, call.args[0])
        tensors = used_vars(call)
        chain = _common(finder, tensors)
        if chain is not None or len(tensors) > 1:
            return chain
        constants = [qop.constant_array(a) for a in call.args]
        scalar = all(c is None or is_scalar(c) for c in constants)
        return _extended(finder, tensors[0]) if scalar and keeps_shape(call, tensors[0]) else None

    def value(
        self, integerizer: Integerizer, var: relax.Var, call: relax.Call, values: Sequence[Value]
    ) -> Value | None:
        """Evaluate the function where the tensor's levels are."""
        if qop.is_call(call, CAST):
            known = isinstance(values[0], Chain) and str(call.attrs.dtype) == "float32"
            return Chain(values[0].source, evaluate(call, [values[0].values])) if known else None
        if any(not isinstance(v, Quantized | Chain) for v in values):
            return None
        if len(values) > 1 and not _have_one_source(integerizer, values, call):
            return None
        operands = [a for a in call.args if isinstance(a, relax.Var | tvm.ir.GenericConst)]
        constants = [qop.constant_array(a) for a in operands]
        if any(c is not None and c.size > 1 for c in constants):
            return None
        if any(c is not None for c in constants) and not keeps_shape(call, used_vars(call)[0]):
            return None
        chains = [_as_chain(integerizer, v, call) for v in values]
        remaining = iter(chains)
        reals = [next(remaining).values if c is None else c.astype(np.float64).reshape(())
                 for c in constants]  # fmt: skip
        return Chain(chains[0].source, evaluate(call, reals))

    def _cast(self, finder: RegionFinder, call: relax.Call) -> Form | None:
        """Go on with a chain whose booleans become the numbers 0 and 1."""
        form = finder.form(call.args[0])
        known = form.kind == "elementwise" and is_boolean(call.args[0])
        return form if known and str(call.attrs.dtype) == "float32" else None

    def _select(self, finder: RegionFinder, call: relax.Call) -> Form | None:
        """Choose between functions of one tensor by a comparison of it: a function of it."""
        constants = [a for a in call.args if not isinstance(a, relax.Var)]
        sources = {_source(finder, v) for v in used_vars(call)}
        if len(sources) != 1 or not all(is_scalar(qop.constant_array(c)) for c in constants):
            return None
        source = sources.pop()
        return None if source is None else Form("elementwise", (source,))


def _extended(finder: RegionFinder, operand: relax.Var) -> Form:
    """Extend an elementwise chain, or start one at a materialized tensor."""
    form = finder.form(operand)
    if form.kind == "elementwise" and finder.absorbs(operand):
        return form
    finder.request(operand, qop.ACTIVATION)
    finder.chain_sources.append(operand)
    return Form("elementwise", (operand,))


def _common(finder: RegionFinder, variables: list[relax.Var]) -> Form | None:
    """Return what is a function of one tensor because its operands are: x * sigmoid(x)."""
    sources = {_source(finder, v) for v in variables}
    chains = any(finder.form(v).kind == "elementwise" for v in variables)
    if len(variables) < 2 or len(sources) > 1 or not chains:
        return None
    source = sources.pop()
    return None if source is None else Form("elementwise", (source,))


def _source(finder: RegionFinder, var: relax.Var) -> relax.Var | None:
    form = finder.form(var)
    if form.kind == "elementwise":
        return form.sources[0] if finder.absorbs(var) or is_boolean(var) else None
    return var if form.kind in ("quantized", "mover") else None


def _as_chain(integerizer: Integerizer, value: Value, call: relax.Call) -> Chain:
    if isinstance(value, Chain):
        return value
    return Chain.identity(integerizer.with_one_scale(value, call))


def _have_one_source(integerizer: Integerizer, values: Sequence[Value], call: relax.Call) -> bool:
    """Whether values are functions of one tensor, of which some are more than the tensor itself."""
    if not any(isinstance(v, Chain) for v in values):
        return False
    first, *others = [_as_chain(integerizer, v, call).source.expr for v in values]
    return all(bool(other.same_as(first)) for other in others)
