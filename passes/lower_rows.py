"""Compute float operators on rows of the last axes by kernels of ours (L3).

Before::

    y = softmax(x, axis=-1)                              # x: (1, 40, 6625)

After::

    rows = reshape(x, (40, 6625))
    y = reshape(call_tir(softmax_rows_f32, (rows,)), (1, 40, 6625))

Softmax and its logarithm, layer normalization, sums, means, maxima and minima of float32 over the
last axes. Requires static shapes. What reduces other axes is left to TVM's legalization: its
neighbouring outputs are next to each other, and vectorized as they are.
"""

from __future__ import annotations

import math
from typing import Any

import tvm
from tvm import relax

from tvmquant.ir.tensor_types import dtype_of, integers, static_shape
from tvmquant.passes.lower_float import OPAQUE
from tvmquant.passes.lowering.emitter import KernelEmitter, LoweringPass
from tvmquant.schedules import float_rows

_SOFTMAX = ("relax.nn.softmax", "relax.nn.log_softmax")
_LAYER_NORM = "relax.nn.layer_norm"
_REDUCTIONS = tuple(f"relax.{name}" for name in float_rows.REDUCTIONS)


class _Lowerer(KernelEmitter):
    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if not isinstance(value, relax.Call) or not hasattr(value.op, "name"):
            return None
        name = value.op.name
        if name not in (*_SOFTMAX, _LAYER_NORM, *_REDUCTIONS) or dtype_of(var) != "float32":
            return None
        shape = static_shape(value.args[0])
        axes = _axes(value, len(shape))
        length = math.prod(shape[axis] for axis in axes)
        if axes != list(range(len(shape) - len(axes), len(shape))) or length == 1:
            return None
        spec = float_rows.RowsSpec(
            name.rsplit(".", 1)[1], math.prod(shape) // length, length,
            float(value.attrs.epsilon) if name == _LAYER_NORM else 0.0,
        )  # fmt: skip
        return self._rows(spec, value, static_shape(var))

    def _rows(
        self, spec: float_rows.RowsSpec, value: relax.Call, shape: tuple[int, ...]
    ) -> relax.Expr:
        x, *parameters = (self.lookup(arg) for arg in value.args)
        args = [self.reshaped(x, (spec.rows, spec.length))]
        args += [self.reshaped(p, (spec.length,)) for p in parameters]
        reduces = spec.operation in float_rows.REDUCTIONS
        out = (spec.rows,) if reduces else (spec.rows, spec.length)
        kernel = float_rows.kernel(spec, self.machine)
        kernel = kernel.with_attr("op_pattern", OPAQUE)
        found = self.call(kernel, args, relax.TensorType(out, "float32"), value)
        return self.reshaped(found, shape)


def _axes(call: relax.Call, rank: int) -> list[int]:
    """Return the axes that an operator combines, sorted and not negative; none mean all."""
    if call.op.name in _SOFTMAX:
        return [int(call.attrs.axis) % rank]
    axes: Any = call.attrs.axes if call.op.name == _LAYER_NORM else call.attrs.axis
    return sorted(axis % rank for axis in integers(axes)) if axes else list(range(rank))


@tvm.ir.transform.module_pass(opt_level=0, name="LowerRows")
class LowerRows(LoweringPass):
    """Lower float operators on rows (see the module's description)."""

    def lowered(self, module: tvm.IRModule) -> tvm.IRModule:
        """Return the module with kernels for rows."""
        return _Lowerer(module, self.machine).rewrite()
