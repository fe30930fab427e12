"""Replace every integer operator by a scheduled kernel for the target (L2 -> L3).

Before::

    y = qconv2d(x, w, bias, M, s, offset) {layout: "NHWC", epilogue: 1}

After::

    y = call_tir(conv2d_nhwc_u8s8s32_vnni512_14x2, (x, w_packed, bias, M, offset', s))

Requires an NHWC L2 graph with its batch bound. Packs weights for the kernel's instruction, folds
zero points and the rounding constant into one offset per channel (`lowering.epilogues`), and turns
the transposes that `ConvertLayout` left at the borders into part of quantize and dequantize.
Operators that stayed float are left for TVM's own legalization. Which kernels compute convolutions
and dense layers, the registered families say (`schedules.families`).
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.tensor_types import dtype_of, static_shape
from tvmquant.machine import Machine
from tvmquant.passes.lowering import (
    borders,
    contractions,
    dynamic,
    elementwise,
    float_operators,
    movement,
    pooling,
)
from tvmquant.passes.lowering.emitter import Lowerer
from tvmquant.schedules.families import Tilings

_OF_INTEGERS = {
    **borders.HANDLERS,
    **contractions.HANDLERS,
    **dynamic.HANDLERS,
    **elementwise.HANDLERS,
    **movement.HANDLERS,
    **pooling.HANDLERS,
}
_PERMUTE = "relax.permute_dims"


def default_tilings(_family: str, _spec: Any, _layer: str) -> None:
    """Leave every kernel its analytic default tiling."""


class _KernelLowerer(Lowerer):
    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if not isinstance(value, relax.Call):
            return None
        name = value.op.name
        if name in float_operators.HANDLERS:
            return float_operators.HANDLERS[name](self, value)
        if name not in _OF_INTEGERS:
            return None
        if name == _PERMUTE and movement.moves_nothing(value):
            return self.reshaped(self.lookup(value.args[0]), static_shape(var))
        moves_floats = name == _PERMUTE and dtype_of(var) == "float32"
        if not (name.startswith(qop.PREFIX) or _is_integer(var) or moves_floats):
            return None  # a float operator; TVM legalizes it
        if name == _PERMUTE:
            for fuse in (borders.quantize_and_move, dynamic.quantize_and_move):
                if (fused := fuse(self, value)) is not None:
                    return fused
        return _OF_INTEGERS[name](self, value)


def _is_integer(var: relax.Var) -> bool:
    types = var.ty.fields if isinstance(var.ty, relax.TupleType) else [var.ty]
    return all(str(t.dtype.dtype) in ("uint8", "int8", "int16", "int32") for t in types)


@tvm.ir.transform.module_pass(opt_level=0, name="LowerToKernels")
class LowerToKernels:
    """Lower the integer operators of a module (see the module's description).

    Parameters
    ----------
    machine : Machine
        Threads that the kernels divide their work for.
    tilings : callable, optional
        Where tuned tilings come from; see `schedules.families.Tilings`.
    """

    def __init__(self, machine: Machine, tilings: Tilings = default_tilings) -> None:
        self.machine = machine
        self.tilings = tilings

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the L3 module."""
        return _KernelLowerer(module, self.machine, self.tilings).rewrite()
