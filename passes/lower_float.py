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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of, count_uses, used_vars
from tvmquant.ir.tensor_types import dtype_of, integers, nhwc_shape, static_shape
from tvmquant.machine import Machine
from tvmquant.passes.convert_layout import AXIS_IN_NHWC, LayoutConverter
from tvmquant.passes.elementwise import BINARY, UNARY
from tvmquant.passes.lowering.emitter import KernelEmitter
from tvmquant.passes.lowering.movement import concat_spec, permute_spec
from tvmquant.schedules import conv2d, float_window, structural
from tvmquant.schedules.epilogue import FloatEpilogue

# FuseOps leaves such a kernel alone.
OPAQUE = 8
CONTRACTIONS = ("relax.nn.conv2d", "relax.matmul")


class _ChannelsLast(LayoutConverter):
    """Lay the float operators out as NHWC."""

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.handlers = {
            **dict.fromkeys((*UNARY, *BINARY, "relax.clip"), self._elementwise),
            **{
                name: handler for name, handler in self.handlers.items()
                if not name.startswith(qop.PREFIX)
            },
            "relax.nn.conv2d": self._conv2d,
            "relax.nn.conv2d_transpose": self._conv2d_transpose,
            "relax.nn.avg_pool2d": self._avg_pool,
            "relax.mean": self._mean,
        }  # fmt: skip

    def converts(self, operand: relax.Expr) -> bool:
        tensor = operand.fields[0] if isinstance(operand, relax.Tuple) else operand
        shape = getattr(tensor.ty, "shape", None)
        return shape is not None and len(shape.values) == 4 and dtype_of(tensor) == "float32"

    def _elementwise(self, call: relax.Call) -> relax.Expr | None:
        tensors = [a for a in call.args if isinstance(a.ty, relax.TensorType)]
        if any(len(a.ty.shape.values) not in (0, 4) for a in tensors):
            return None  # broadcast from a lower rank: its dimensions line up in NCHW alone
        args = [self.nhwc(a) if isinstance(a.ty, relax.TensorType) else a for a in call.args]
        return relax.Call(call.op, args, call.attrs, call.ty_args)

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

    def _avg_pool(self, call: relax.Call) -> relax.Expr:
        a = call.attrs
        return relax.op.nn.avg_pool2d(
            self.nhwc(call.args[0]), a.pool_size, a.strides, a.padding, a.dilation,
            bool(a.ceil_mode), bool(a.count_include_pad), layout="NHWC",
        )  # fmt: skip

    def _mean(self, call: relax.Call) -> relax.Expr | None:
        if not bool(call.attrs.keepdims) or call.attrs.axis is None:
            return None
        axes = [AXIS_IN_NHWC[int(axis) % 4] for axis in call.attrs.axis]
        return relax.op.mean(self.nhwc(call.args[0]), axes, keepdims=True)


@dataclass(frozen=True)
class _Layer:
    """A contraction with what follows it in the same kernel.

    Parameters
    ----------
    call : Call
        The convolution or matmul.
    inside : tuple of Var
        What the kernel computes on its way to its result, which no other call reads.
    bias : array or None
    residual : Var or None
    low, high : float
        Bounds of the clip.
    """

    call: relax.Call
    inside: tuple[relax.Var, ...] = ()
    bias: Any = None
    residual: relax.Var | None = None
    low: float = -math.inf
    high: float = math.inf

    @property
    def clips(self) -> bool:
        """Whether the layer already ends in a clip."""
        return self.low > -math.inf or self.high < math.inf

    @property
    def epilogue(self) -> FloatEpilogue:
        """What the kernel does to an accumulator with its bias."""
        return FloatEpilogue(self.low, self.high, self.residual is not None)


def _absorb(layer: _Layer, var: relax.Var, value: relax.Call) -> _Layer | None:
    """Return the layer with the one call that reads its result ``var``, or None if it cannot be."""
    inside = (*layer.inside, var)
    if layer.clips:
        return None
    if qop.is_call(value, "relax.nn.relu"):
        return replace(layer, inside=inside, low=0.0)
    if qop.is_call(value, "relax.clip"):
        low, high = (float(bound.value) for bound in value.args[1:])
        return replace(layer, inside=inside, low=low, high=high)
    if not qop.is_call(value, "relax.add") or layer.residual is not None:
        return None
    constant = qop.constant_array(value.args[1])
    if constant is not None:
        channels = static_shape(var)[-1]
        one_per_channel = constant.size == channels and constant.shape[-1:] == (channels,)
        if layer.bias is not None or not one_per_channel:
            return None
        return replace(layer, inside=inside, bias=constant.reshape(-1))
    other = value.args[0] if value.args[1].same_as(var) else value.args[1]
    same = isinstance(other, relax.Var) and static_shape(other) == static_shape(var)
    return replace(layer, inside=inside, residual=other) if same else None


def _plan_layers(function: relax.Function) -> dict[relax.Var, _Layer]:
    """Return every layer by the variable of its result."""
    values = dict(bindings_of(function))
    uses = count_uses(function)
    reader = {
        var: result
        for result, value in values.items()
        if isinstance(value, relax.Call)
        for var in used_vars(value)
        if uses[var] == 1
    }
    layers: dict[relax.Var, _Layer] = {}
    taken: set[relax.Var] = set()
    for var, value in values.items():
        weight = value.args[1] if qop.is_call(value, *CONTRACTIONS) else None
        array = qop.constant_array(weight)
        if array is None or dtype_of(var) != "float32":
            continue
        if qop.is_call(value, "relax.matmul") and array.ndim != 2:
            continue  # one weight per item of a batch, or a vector
        layer, result = _Layer(value), var
        while result in reader and reader[result] not in taken:
            longer = _absorb(layer, result, values[reader[result]])
            if longer is None:
                break
            layer, result = longer, reader[result]
        layers[result] = layer
        taken.update((*layer.inside, result))
    return layers


class _Lowerer(KernelEmitter):
    def __init__(self, module: tvm.IRModule, machine: Machine) -> None:
        super().__init__(module, machine)
        self.layers = _plan_layers(self.function)
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

    def _conv2d(self, var: relax.Var, layer: _Layer) -> relax.Expr:
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

    def _dense(self, var: relax.Var, layer: _Layer) -> relax.Expr:
        x = self.lookup(layer.call.args[0])
        weight = np.ascontiguousarray(qop.constant_array(layer.call.args[1]).T)[:, None, None, :]
        rows = math.prod(static_shape(x)[:-1])
        spec = conv2d.Conv2DSpec(rows, 1, 1, weight.shape[3], weight.shape[0])
        return self._contract(var, layer, spec, x, weight, "dense")

    def _contract(
        self, var: relax.Var, layer: _Layer, spec: conv2d.Conv2DSpec, x: relax.Expr, weight: Any,
        operation: str,
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

    def _residual(self, layer: _Layer) -> list[relax.Expr]:
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


def _bias(layer: _Layer, length: int) -> relax.Expr:
    """Return the bias as a constant of ``length`` entries, zeros beyond the channels."""
    values = np.zeros(length, np.float32)
    if layer.bias is not None:
        values[: layer.bias.size] = layer.bias
    return qop.constant(values)


@tvm.ir.transform.module_pass(opt_level=0, name="LowerFloat")
class LowerFloat:
    """Lower the float operators of a module (see the module's description).

    Parameters
    ----------
    machine : Machine
        Threads that the kernels divide their work for.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with float32 kernels."""
        channels_last = _ChannelsLast(module).rewrite()
        return _Lowerer(channels_last, self.machine).rewrite()
