"""Lower a float graph to scheduled float32 kernels, channels last (L0 -> L3).

Before::

    c = conv2d(x, w); b = add(c, bias); s = add(b, r); y = relu(s)

After::

    y = call_tir(conv2d_f32_fma256_tile6x2, (x_nhwc, w_packed, bias, r_nhwc))

The float build is the baseline that an integer library is compared with, so it gets the same
convolution schedule (`schedules.conv2d`), layout and fusion. Requires a canonical L0 graph with its
batch bound. Convolution (transposed only where windows do not overlap), dense layers with constant
weights, pooling, transposes and concatenation get kernels; other operators are left for TVM's
legalization.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.tensor_types import dtype_of, integers, nhwc_shape, static_shape
from tvmquant.machine import Machine
from tvmquant.passes.lowering.emitter import KernelEmitter, LoweringPass
from tvmquant.passes.lowering.float_layers import FloatLayer, plan_layers
from tvmquant.passes.lowering.float_layout import FloatLayoutConverter
from tvmquant.passes.lowering.movement import concat_spec, permute_spec
from tvmquant.schedules import conv2d, float_window, structural
from tvmquant.schedules.epilogue import FloatEpilogue

# FuseOps leaves such a kernel alone.
OPAQUE = 8


class _Lowerer(KernelEmitter):
    def __init__(self, module: tvm.IRModule, machine: Machine) -> None:
        super().__init__(module, machine)
        self.layers = plan_layers(self.function)
        self.inside = {var for layer in self.layers.values() for var in layer.inside}
        self.handlers: dict[str, Callable[[relax.Call], relax.Expr | None]] = {
            "relax.nn.max_pool2d": self._pool,
            "relax.nn.avg_pool2d": self._pool,
            "relax.mean": self._mean,
            "relax.permute_dims": self._permute,
            "relax.concat": self._concat,
        }

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if var in self.inside:
            return var  # computed by the kernel of its layer
        if var in self.layers:
            layer = self.layers[var]
            if qop.is_call(layer.call, "relax.matmul"):
                return self._dense(var, layer)
            return self._conv2d(var, layer)
        handler = self.handlers.get(value.op.name) if isinstance(value, relax.Call) else None
        return handler(value) if handler and dtype_of(var) == "float32" else None

    def opaque(
        self, kernel: tirx.PrimFunc, args: list[relax.Expr], shape: tuple[int, ...], node: Any
    ) -> relax.Expr:
        """Emit the call of a float32 kernel that FuseOps leaves alone."""
        out = relax.TensorType(shape, "float32")
        return self.call(kernel.with_attr("op_pattern", OPAQUE), args, out, node)

    def _conv2d(self, var: relax.Var, layer: FloatLayer) -> relax.Expr:
        a = layer.call.attrs
        x = self.lookup(layer.call.args[0])
        weight = qop.constant_array(layer.call.args[1])
        groups, channels = int(a.groups), static_shape(x)[3]
        strides, padding, dilation = map(integers, (a.strides, a.padding, a.dilation))
        if groups == channels > 1:
            window = float_window.FloatWindowSpec(
                "depthwise_conv2d", nhwc_shape(x), weight.shape[1:3], strides, padding, dilation,
                nhwc_shape(var)[1:3], weight.shape[0], layer.epilogue,
            )  # fmt: skip
            taps = qop.constant(np.ascontiguousarray(weight[..., 0].transpose(1, 2, 0)))
            args = [x, taps, _bias(layer, weight.shape[0]), *self._residual(layer)]
            kernel = float_window.kernel(window, self.machine)
            return self.opaque(kernel, args, static_shape(var), layer.call)
        convolution = conv2d.Conv2DSpec(
            *nhwc_shape(x), weight.shape[0], weight.shape[1:3], strides, padding, dilation, groups
        )
        return self._contract(var, layer, convolution, x, weight, "conv2d")

    def _dense(self, var: relax.Var, layer: FloatLayer) -> relax.Expr:
        x = self.lookup(layer.call.args[0])
        weight = np.ascontiguousarray(qop.constant_array(layer.call.args[1]).T)[:, None, None, :]
        rows = math.prod(static_shape(x)[:-1])
        spec = conv2d.Conv2DSpec(rows, 1, 1, weight.shape[3], weight.shape[0])
        return self._contract(var, layer, spec, x, weight, "dense")

    def _contract(
        self, var: relax.Var, layer: FloatLayer, spec: conv2d.Conv2DSpec, x: relax.Expr,
        weight: Any, operation: str,
    ) -> relax.Expr:  # fmt: skip
        spec = replace(spec, epilogue=layer.epilogue, dtype="float32").flattened()
        tiling = conv2d.target_tiling(spec, self.machine)
        out_shape = conv2d.output_shape(spec, tiling)
        args = [
            self.reshaped(x, conv2d.input_shape(spec, tiling)),
            qop.constant(conv2d.pack_weight(weight, spec, tiling)),
            _bias(layer, conv2d.padded_outputs(spec, tiling)),
            *(self.reshaped(r, out_shape) for r in self._residual(layer)),
        ]
        kernel = conv2d.kernel(spec, tiling, operation)
        return self.reshaped(self.opaque(kernel, args, out_shape, layer.call), static_shape(var))

    def _residual(self, layer: FloatLayer) -> list[relax.Expr]:
        return [] if layer.residual is None else [self.lookup(layer.residual)]

    def _pool(self, call: relax.Call) -> relax.Expr | None:
        a = call.attrs
        if str(a.layout) != "NHWC":
            return None
        x = self.lookup(call.args[0])
        size, strides, padding, dilation = map(
            integers, (a.pool_size, a.strides, a.padding, a.dilation)
        )
        spec = float_window.FloatWindowSpec(
            call.op.name.removeprefix("relax.nn."), nhwc_shape(x), size, strides, padding, dilation,
            nhwc_shape(call)[1:3], nhwc_shape(x)[3], FloatEpilogue(), bool(a.count_include_pad),
        )  # fmt: skip
        kernel = float_window.kernel(spec, self.machine)
        return self.opaque(kernel, [x], static_shape(call), call)

    def _mean(self, call: relax.Call) -> relax.Expr | None:
        """Average over rows and columns: one window."""
        x = self.lookup(call.args[0])
        shape = static_shape(x)
        axes = sorted(int(axis) % len(shape) for axis in call.attrs.axis or [])
        if len(shape) != 4 or axes != [1, 2]:
            return None
        spec = float_window.FloatWindowSpec(
            "avg_pool2d", shape, shape[1:3], (1, 1), (0, 0, 0, 0), (1, 1), (1, 1), shape[3],
            FloatEpilogue(),
        )  # fmt: skip
        kernel = float_window.kernel(spec, self.machine)
        pooled = self.opaque(kernel, [x], (shape[0], 1, 1, shape[3]), call)
        return self.reshaped(pooled, static_shape(call))

    def _permute(self, call: relax.Call) -> relax.Expr:
        x = self.lookup(call.args[0])
        return self._moved(permute_spec(x, call), [x], call)

    def _concat(self, call: relax.Call) -> relax.Expr:
        inputs = [self.lookup(field) for field in call.args[0].fields]
        return self._moved(concat_spec(inputs, call), inputs, call)

    def _moved(self, spec: structural.Spec, args: list[relax.Expr], call: relax.Call) -> relax.Expr:
        kernel = structural.kernel(spec, self.machine)
        return self.opaque(kernel, args, static_shape(call), call)


def _bias(layer: FloatLayer, length: int) -> relax.Expr:
    """Return the bias as a constant of ``length`` entries, zeros beyond the channels."""
    values = np.zeros(length, np.float32)
    if layer.bias is not None:
        values[: layer.bias.size] = layer.bias
    return qop.constant(values)


@tvm.ir.transform.module_pass(opt_level=0, name="LowerFloat")
class LowerFloat(LoweringPass):
    """Lower the float operators of a module (see the module's description)."""

    def lowered(self, module: tvm.IRModule) -> tvm.IRModule:
        """Return the module with float32 kernels."""
        channels_last = FloatLayoutConverter(module).rewrite()
        return _Lowerer(channels_last, self.machine).rewrite()
