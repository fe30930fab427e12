"""Float operators laid out channels last, as the float32 kernels take them."""

from __future__ import annotations

import tvm
from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.tensor_types import dtype_of, integers, static_shape
from tvmquant.passes.convert_layout import LayoutConverter


class FloatLayoutConverter(LayoutConverter):
    """Lay the float operators out as NHWC."""

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.handlers = {
            **{
                name: handler for name, handler in self.handlers.items()
                if not name.startswith(qop.PREFIX)
            },
            "relax.nn.conv2d": self._conv2d,
            "relax.nn.conv2d_transpose": self._conv2d_transpose,
        }  # fmt: skip

    def converts(self, operand: relax.Expr) -> bool:
        """Whether an operand is a float tensor of rank 4."""
        tensor = operand.fields[0] if isinstance(operand, relax.Tuple) else operand
        shape = getattr(tensor.ty, "shape", None)
        return shape is not None and len(shape.values) == 4 and dtype_of(tensor) == "float32"

    def _conv2d(self, call: relax.Call) -> relax.Expr | None:
        a = call.attrs
        if qop.constant_array(call.args[1]) is None:
            return None
        return relax.op.nn.conv2d(
            *(self.nhwc(arg) for arg in call.args), a.strides, a.padding, a.dilation, int(a.groups),
            data_layout="NHWC", kernel_layout="OHWI",
        )  # fmt: skip

    def _conv2d_transpose(self, call: relax.Call) -> relax.Expr | None:
        """Compute windows that do not overlap as one pixel each, and lay their pixels out."""
        weight = qop.constant_array(call.args[1])
        a = call.attrs
        if weight is None or int(a.groups) != 1 or weight.shape[2:] == (1, 1):
            return None
        strides, dilation = integers(a.strides), integers(a.dilation)
        padding = [int(value) for value in (*a.padding, *a.output_padding)]
        if strides != weight.shape[2:] or dilation != (1, 1) or any(padding):
            return None
        x = self.nhwc(call.args[0])
        channels, outputs, height, width = weight.shape
        rows = weight.transpose(2, 3, 1, 0).reshape(-1, 1, 1, channels)
        pixels = self.emit(
            relax.op.nn.conv2d(
                x, qop.constant(rows), data_layout="NHWC", kernel_layout="OHWI"
            )
        )  # fmt: skip
        n, h, w, _ = static_shape(x)
        split = self.emit(relax.op.reshape(pixels, (n, h, w, height, width, outputs)))
        moved = self.emit(relax.op.permute_dims(split, [0, 1, 3, 2, 4, 5]))
        return relax.op.reshape(moved, (n, h * height, w * width, outputs))
