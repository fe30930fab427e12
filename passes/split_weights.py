"""Compute layers whose weights are sums of signs as one layer of one bit for each (L1).

Before, ``w = a_1 b_1 + a_2 b_2``, ``b_i`` signs::

    lv = conv2d(x_q, fake_quant(w))

After::

    lv = conv2d(x_q, fake_quant(a_1 b_1) {format: "binary", fixed: 1})
    lv1 = conv2d(x_q, fake_quant(a_2 b_2) {format: "binary", fixed: 1})
    lv2 = lv + lv1

`KeepBinarySums` is to follow, so that the sum is rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
import tvm
from tvm import relax

from tvmquant.formats import BINARY
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, span_name, with_span
from tvmquant.passes.insert_binarization import few_valued_weight

Terms = Sequence[npt.NDArray[Any]]


class _Splitter(DataflowRewriter):
    def __init__(self, module: tvm.IRModule, terms: Mapping[str, Terms]) -> None:
        super().__init__(module)
        self.terms = terms

    def visit_binding(self, _var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        name = span_name(value)
        if not qop.is_call(value, *qop.FLOAT_CONTRACTIONS) or name not in self.terms:
            return None
        axis = 1 if qop.is_call(value, "relax.matmul") else 0
        total: relax.Expr | None = None
        for index, term in enumerate(self.terms[name]):
            own = f"{name}:{index + 1}" if index else name
            weight = self.emit(few_valued_weight(term, BINARY.name, axis=axis, name=own))
            args = [self.lookup(value.args[0]), weight]
            call = relax.Call(value.op, args, value.attrs, value.ty_args, value.span)
            layer = self.emit(with_span(call, own))
            total = layer if total is None else self.emit(
                with_span(relax.op.add(total, layer), name)
            )  # fmt: skip
        return total


@tvm.ir.transform.module_pass(opt_level=0, name="SplitWeights")
class SplitWeights:
    """Split layers (see the module's description).

    Parameters
    ----------
    terms : mapping of str to sequence of float array
        By the name of the layer: what its weight is the sum of, each of one magnitude.
    """

    def __init__(self, terms: Mapping[str, Terms]) -> None:
        self.terms = terms

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the rewritten module."""
        return _Splitter(module, self.terms).rewrite()
