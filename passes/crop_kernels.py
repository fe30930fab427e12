"""Leave out rows and columns of a convolution's kernel that only ever meet padding (L0).

Before, on an image of one pixel::

    conv2d(x, w, padding=[1, 1, 1, 1])              # w (O, I, 3, 3)

After::

    conv2d(x, w[:, :, 1:2, 1:2], padding=[0, 0, 0, 0])

What remains has weights that matter only, by which their scales are then chosen, and does fewer
multiplications. Requires NCHW and a constant weight; the extents of the image have to be known.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter


class _Cropper(DataflowRewriter):
    def visit_binding(self, _var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if not qop.is_call(value, "relax.nn.conv2d") or str(value.attrs.data_layout) != "NCHW":
            return None
        weight = qop.constant_array(value.args[1])
        extents = [*value.args[0].ty.shape.values[2:], *value.ty.shape.values[2:]]
        known = all(isinstance(extent, tvm.tirx.IntImm) for extent in extents)
        if weight is None or not known:
            return None
        a = value.attrs
        strides, dilation, padding = (
            [int(v) for v in values] for values in (a.strides, a.dilation, a.padding)
        )
        kept = []
        for axis in range(2):
            met = _taps_that_meet(
                weight.shape[2 + axis], int(extents[axis]), int(extents[2 + axis]), strides[axis],
                dilation[axis], padding[axis],
            )  # fmt: skip
            if not met.any():
                return None  # every product is with padding: nothing to keep
            first, last = int(np.argmax(met)), len(met) - 1 - int(np.argmax(met[::-1]))
            kept.append(slice(first, last + 1))
            # the window begins later and ends earlier
            padding[axis] -= first * dilation[axis]
            padding[2 + axis] -= (len(met) - 1 - last) * dilation[axis]
        cropped = weight[:, :, kept[0], kept[1]]
        if cropped.shape == weight.shape or min(padding) < 0:
            return None
        return relax.Call(
            value.op,
            [self.lookup(value.args[0]), qop.constant(cropped)],
            _with_padding(value, padding),
            value.ty_args,
            value.span,
        )


def _taps_that_meet(
    taps: int, extent: int, outputs: int, stride: int, dilation: int, before: int
) -> Any:
    """Return for each tap whether it meets an element of the image at some output."""
    positions = np.arange(outputs)[None] * stride - before + np.arange(taps)[:, None] * dilation
    return ((positions >= 0) & (positions < extent)).any(axis=1)


def _with_padding(call: relax.Call, padding: list[int]) -> Any:
    a = call.attrs
    changed = relax.op.nn.conv2d(
        call.args[0], call.args[1], a.strides, padding, a.dilation, a.groups, a.data_layout,
        a.kernel_layout, a.out_layout, a.out_dtype or None,
    )  # fmt: skip
    return changed.attrs


@tvm.ir.transform.module_pass(opt_level=0, name="CropKernels")
class CropKernels:
    """Crop the kernels of convolutions (see the module's description)."""

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with smaller kernels where padding allows it."""
        return _Cropper(module).rewrite()
