"""Let convolutions pad their input themselves, with whatever constant (L2).

Before::

    x1 = pad(x, 1, value=129); y = qconv2d(x1, w, bias) {padding: 0, input_zero_point: 128}

After::

    y = qconv2d(x, w, bias) {padding: 1, input_zero_point: 129}

so that no padded tensor is made, and signs that are padded with +1 or -1 are packed where they are
made (`lowering.bits`). At this level a convolution's zero point is what it pads with; what else its
zero point does is a part of the bias. Requires that the convolution pads nothing yet, and that the
constant is put around rows and columns only.
"""

from __future__ import annotations

import tvm
from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of
from tvmquant.ir.tensor_types import dtype_of


class _Fuser(DataflowRewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.producer = dict(bindings_of(self.function))

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if not qop.is_call(value, qop.QCONV2D):
            return None
        attrs, pad = qop.attributes(value), self.producer.get(value.args[0])
        axes = [0, 1, 2, 3]
        if qop.is_call(pad, "relax.permute_dims"):  # of a model that is channels last
            axes, pad = [int(a) for a in pad.attrs.axes], self.producer.get(pad.args[0])
        if any(attrs["padding"]) or attrs.get("dynamic"):
            return None
        if not isinstance(pad, relax.Call) or not _pads_images(pad, axes):
            return None
        top, bottom, left, right = _widths(pad, axes)[4:]
        attrs |= {
            "padding": [top, left, bottom, right],
            "input_zero_point": int(float(pad.attrs.pad_value)),
        }
        x, *others = [self.lookup(a) for a in (pad.args[0], *value.args[1:])]
        if axes != sorted(axes):
            x = self.emit(relax.op.permute_dims(x, axes), "x_q")
        return qop.emit(value.op.name, [x, *others], attrs, value.span)


def _pads_images(call: relax.Call, axes: list[int]) -> bool:
    """Whether a call puts a constant around images of bytes; ``axes`` are theirs, in NCHW."""
    if not qop.is_call(call, "relax.nn.pad") or dtype_of(call) != "uint8":
        return False
    widths = _widths(call, axes) if len(call.attrs.pad_width) == 8 else [-1]
    return min(widths) >= 0 and not any(widths[:4]) and str(call.attrs.pad_mode) == "constant"


def _widths(call: relax.Call, axes: list[int]) -> list[int]:
    """Return what a call puts before and behind each axis, in the order of ``axes``."""
    widths = [int(v) for v in call.attrs.pad_width]
    return [widths[2 * axis + side] for axis in axes for side in (0, 1)]


@tvm.ir.transform.module_pass(opt_level=0, name="FusePadding")
class FusePadding:
    """Fuse padding into convolutions (see the module's description)."""

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with padding fused; a pad that nothing reads is removed."""
        return _Fuser(module).rewrite()
