"""Put a batch normalization behind layers that have none: training needs it (L0).

Before::

    lv = conv2d(x, w); y = add(lv, bias)

After, of results of mean ``m`` and variance ``v``::

    lv = conv2d(x, w)
    lv1 = batch_norm(lv, gamma=sqrt(v + eps), beta=m, mean=m, var=v)[0]; y = add(lv1, bias)

It is the identity until it is trained. A layer whose result a normalization reads, with constants
added in between or not, has one and stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import tvm
from tvm import relax

from tvmquant.arithmetic import FloatArray
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of, span_name, used_vars, with_span
from tvmquant.passes.fold_batch_norm import BATCH_NORM
from tvmquant.passes.region_operators import output_axis

EPSILON: Final = 1e-5
MOMENTUM: Final = 0.1


def layers_without_batch_norm(function: relax.Function) -> dict[str, relax.Call]:
    """Return the layers, of constant weights, whose results are not normalized, by their names."""
    readers: dict[relax.Var, list[tuple[relax.Var, relax.Expr]]] = {}
    for var, value in bindings_of(function):
        for read in used_vars(value):
            readers.setdefault(read, []).append((var, value))

    def is_normalized(var: relax.Var) -> bool:
        for reader, value in readers.get(var, []):
            if qop.is_call(value, BATCH_NORM):
                return True
            biased = qop.is_call(value, "relax.add") and len(used_vars(value)) == 1
            if biased and is_normalized(reader):
                return True
        return False

    return {
        span_name(value): value
        for var, value in bindings_of(function)
        if qop.is_call(value, *qop.FLOAT_CONTRACTIONS)
        and isinstance(value.args[1], tvm.ir.GenericConst)
        and not is_normalized(var)
    }


class _Inserter(DataflowRewriter):
    def __init__(
        self, module: tvm.IRModule, statistics: Mapping[str, tuple[FloatArray, FloatArray]]
    ) -> None:
        super().__init__(module)
        without = layers_without_batch_norm(self.function)
        self.statistics = {name: s for name, s in statistics.items() if name in without}

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if not qop.is_call(value, *qop.FLOAT_CONTRACTIONS):
            return None
        known = self.statistics.get(span_name(value))
        if known is None:
            return None
        mean, variance = known
        layer = self.emit(self.copy(value), str(var.name))
        arrays = np.sqrt(variance + EPSILON), mean, mean, variance
        call = relax.op.nn.batch_norm(
            layer, *(qop.constant(array.astype(np.float32)) for array in arrays),
            axis=output_axis(value), epsilon=EPSILON, momentum=MOMENTUM, training=False,
        )  # fmt: skip
        norm = self.emit(with_span(call, f"{span_name(value)}.norm"), "norm")
        return relax.TupleGetItem(norm, 0)


@tvm.ir.transform.module_pass(opt_level=0, name="InsertBatchNorm")
class InsertBatchNorm:
    """Insert normalizations (see the module's description).

    Parameters
    ----------
    statistics : mapping of str to (float64 array (O,), float64 array (O,))
        Mean and variance of each output channel, without bias, by layer; others are left alone.
    """

    def __init__(self, statistics: Mapping[str, tuple[FloatArray, FloatArray]]) -> None:
        self.statistics = statistics

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with normalizations."""
        return _Inserter(module, self.statistics).rewrite()
