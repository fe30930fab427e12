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
        if any(attrs["padding"]) or attrs.get("dynamic"):
            return None
        if not isinstance(pad, relax.Call) or not _pads_images(pad):
            return None
        top, bottom, left, right = (int(v) for v in pad.attrs.pad_width[4:])
        attrs |= {
            "padding": [top, left, bottom, right],
            "input_zero_point": int(float(pad.attrs.pad_value)),
        }
        args = [self.lookup(a) for a in (pad.args[0], *value.args[1:])]
        return qop.emit(value.op.name, args, attrs, value.span)


def _pads_images(call: relax.Call) -> bool:
    """Whether a call puts a constant around images of bytes (NCHW)."""
    if not qop.is_call(call, "relax.nn.pad") or dtype_of(call) != "uint8":
        return False
    widths = [int(v) for v in call.attrs.pad_width]
    outside = len(widths) == 8 and min(widths) >= 0 and not any(widths[:4])
    return outside and str(call.attrs.pad_mode) == "constant"


@tvm.ir.transform.module_pass(opt_level=0, name="FusePadding")
class FusePadding:
    """Fuse padding into convolutions (see the module's description)."""

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with padding fused; a pad that nothing reads is removed."""
        return _Fuser(module).rewrite()
