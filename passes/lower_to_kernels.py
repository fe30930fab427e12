"""Replace every integer operator by a scheduled kernel for the target (L2 -> L3).

Before::

    y = qconv2d(x, w, bias, M, s, offset) {layout: "NHWC", epilogue: 1}

After::

    y = call_tir(conv2d_nhwc_u8s8s32_vnni512_14x2, (x, w_packed, bias, M, offset', s))

Requires an NHWC L2 graph with its batch bound. Packs weights for the kernel's instruction, folds
zero points and the rounding constant into one offset per channel (`schedules.epilogue`), and turns
the transposes that `ConvertLayout` left at the borders into part of quantize and dequantize.
Operators that stayed float are left for TVM's own legalization. What each layer became is
recorded in the function attribute ``tvmquant.kernels`` of the kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import tvm
from tvm import relax, tirx

from tvmquant.bit_choice import BitChoice
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of, count_uses, span_name
from tvmquant.ir.tensor_types import dtype_of, integers, nhwc_shape, static_shape
from tvmquant.machine import Machine
from tvmquant.passes.convert_layout import TO_NCHW, TO_NHWC
from tvmquant.passes.recurrent import RECURRENT
from tvmquant.resize import coordinates, linear, nearest
from tvmquant.schedules import (
    border,
    conv2d,
    conv2d_transpose,
    depthwise_conv2d,
    elementwise,
    group_norm_f32,
    linear_resize,
    pool,
    recurrent_f32,
    structural,
)
from tvmquant.schedules.epilogue import Epilogue
from tvmquant.schedules.isa import multiplies_in_pairs

# Given the kernel's family ("conv2d", "depthwise_conv2d", "conv2d_transpose"), its spec and the
# layer's name: the tuned tiling, or None for the default.
Tilings: TypeAlias = Callable[[str, Any, str], Any]


def default_tilings(_family: str, _spec: Any, _layer: str) -> None:
    """Leave every kernel its analytic default tiling."""


class _Lowerer(DataflowRewriter):
    def __init__(self, module: tvm.IRModule, machine: Machine, tilings: Tilings) -> None:
        super().__init__(module)
        self.machine = machine
        self.tilings = tilings
        self.uses = count_uses(self.function)
        self.producer = dict(bindings_of(self.function))
        self.handlers: dict[str, Callable[[relax.Call], relax.Expr | None]] = {
            qop.QUANTIZE: self._quantize,
            qop.DEQUANTIZE: self._dequantize,
            qop.QCONV2D: self._conv2d,
            qop.QCONV2D_TRANSPOSE: self._conv2d_transpose,
            qop.QDENSE: self._dense,
            qop.QMULTIPLY: self._multiply,
            qop.POOL_SUM: self._pool_sum,
            qop.REQUANTIZE: self._requantize,
            qop.TABLE: self._table,
            "relax.nn.max_pool2d": self._max_pool,
            "relax.max": self._global_max,
            "relax.permute_dims": self._permute,
            "relax.concat": self._concat,
            "relax.strided_slice": self._slice,
            "relax.nn.pad": self._pad,
            "relax.image.resize2d": self._resize,
            "relax.broadcast_to": self._broadcast,
        }
        self.float_handlers: dict[str, Callable[[relax.Call], relax.Expr | None]] = {
            "relax.nn.group_norm": self._group_norm,
            RECURRENT: self._recurrent,
        }

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if not isinstance(value, relax.Call):
            return None
        if value.op.name in self.float_handlers:
            return self.float_handlers[value.op.name](value)
        handler = self.handlers.get(value.op.name)
        if handler is None:
            return None
        if qop.is_call(value, "relax.permute_dims") and _moves_nothing(value):
            return self.reshaped(self.lookup(value.args[0]), static_shape(var))
        if not value.op.name.startswith(qop.PREFIX) and not _is_integer(var):
            return None  # a float operator; TVM legalizes it
        return handler(value)

    # -- calls ----------------------------------------------------------------------------------

    def call(
        self, kernel: tirx.PrimFunc, args: list[relax.Expr], out: Any, node: relax.Call
    ) -> relax.Expr:
        """Add a kernel to the module and emit its call."""
        name = str(kernel.attrs["tvmquant.kernel"])
        if "global_symbol" in kernel.attrs:
            kernel = kernel.without_attr("global_symbol")
        function = self.builder.add_func(kernel, name)
        call = relax.op.call_tir(function, args, out_ty=out)
        named = relax.Call(call.op, call.args, call.attrs, call.ty_args, node.span)
        return self.emit(named, "lv")

    def reshaped(self, expr: relax.Expr, shape: tuple[int, ...]) -> relax.Expr:
        """View a tensor in another shape (no copy at run time)."""
        if static_shape(expr) == tuple(shape):
            return expr
        return self.emit(relax.op.reshape(expr, shape))

    def _epilogue(
        self, attrs: dict[str, Any], args: list[relax.Expr], channels: int = 0, padded: int = 0
    ) -> tuple[Epilogue | None, list[relax.Expr]]:
        """Return the static epilogue and its folded inputs from ``args`` = M, s, offset, ...

        With ``channels``, every vector gets one entry per channel and zeros up to ``padded``; else
        the vectors keep the least shape that holds them all. Without ``args`` there is no epilogue.
        """
        return self._folded_epilogue(attrs, args, channels, padded) if args else (None, [])

    def _folded_epilogue(
        self, attrs: dict[str, Any], args: list[relax.Expr], channels: int = 0, padded: int = 0
    ) -> tuple[Epilogue, list[relax.Expr]]:
        residual, table, slopes = (bool(attrs.get(k, 0)) for k in ("residual", "values", "slopes"))
        dtype = attrs["compute_dtype"]
        multiplier, shift, offset = (qop.constant_array(a).astype(np.int64) for a in args[:3])
        folded = offset + (np.int64(1) << (shift - 1)) + (attrs["output_zero_point"] << shift)
        acc_zero_point = attrs.get("acc_zero_point", 0)
        if not slopes:
            folded = folded - acc_zero_point * multiplier
        vectors = [multiplier, folded, shift]
        if residual:
            factor = qop.constant_array(args[4]).astype(np.int64)
            vectors[1] = folded - attrs["residual_zero_point"] * factor
            vectors.append(factor)
        if slopes:
            vectors.append(qop.constant_array(args[3]).astype(np.int64))
        if channels:
            vectors = [_per_channel(v, channels, padded) for v in vectors]
        else:
            vectors = list(np.broadcast_arrays(*vectors))
        vectors[2] = np.maximum(vectors[2], 1)
        constants = [qop.constant(v.astype(dtype)) for v in vectors]
        if residual:
            constants.insert(3, args[3])
        if table:
            constants.append(args[-1])
        epilogue = Epilogue(
            dtype, attrs["out_dtype"], attrs["qmin"], attrs["qmax"], residual, table, slopes,
            acc_zero_point if slopes else 0,
        )  # fmt: skip
        return epilogue, constants

    # -- contractions ---------------------------------------------------------------------------

    def _conv2d(self, call: relax.Call) -> relax.Expr:
        attrs = qop.attributes(call)
        (x, kernel, bias, *extra), multiplier = self._operands(call)
        array = qop.constant_array(kernel)
        batch, height, width, channels = static_shape(x)
        spec = conv2d.Conv2DSpec(
            batch, height, width, channels, array.shape[0], tuple(array.shape[1:3]),
            tuple(attrs["strides"]), tuple(attrs["padding"]), tuple(attrs["dilation"]),
            attrs["groups"], attrs["input_zero_point"],
        )  # fmt: skip
        if attrs["groups"] == channels > 1:
            weight = _multiplied(array, multiplier)
            return self._depthwise(call, attrs, spec, weight, [x, bias, *extra])
        return self._contract(call, attrs, spec, array, [x, bias, *extra], multiplier)

    def _dense(self, call: relax.Call) -> relax.Expr:
        attrs = qop.attributes(call)
        (x, weight, bias, *extra), multiplier = self._operands(call)
        array = qop.constant_array(weight)[:, None, None, :]
        if multiplier is not None:
            multiplier = multiplier[:, None, None, :]
        rows = int(np.prod(static_shape(x)[:-1]))
        spec = conv2d.Conv2DSpec(rows, 1, 1, array.shape[3], array.shape[0])
        return self._contract(call, attrs, spec, array, [x, bias, *extra], multiplier)

    def _operands(self, call: relax.Call) -> tuple[list[relax.Expr], Any]:
        """Return the operands, and the multipliers of the weight's groups as an array, or None."""
        operands, multiplier = qop.contraction_operands(call)
        return [self.lookup(a) for a in operands], qop.constant_array(multiplier)

    def _contract(
        self, call: relax.Call, attrs: dict[str, Any], spec: conv2d.Conv2DSpec, weight: Any,
        args: list[relax.Expr], multiplier: Any = None, shape: tuple[int, ...] | None = None,
    ) -> relax.Expr:  # fmt: skip
        """Lower a convolution or dense layer; ``shape`` is the result's, by default the call's."""
        x, bias, *extra = args
        flat = spec.flattened()
        epilogue, inputs = self._epilogue(attrs, extra)
        residual = epilogue is not None and epilogue.residual
        dtype = dtype_of(inputs[3]) if residual else "uint8"
        flat = replace(flat, epilogue=epilogue, residual_dtype=dtype)
        flat, weight, scale = self._narrowed(flat, attrs, weight, multiplier, span_name(call))
        tiling = self.tilings("conv2d", flat, span_name(call)) or conv2d.target_tiling(
            flat, self.machine
        )
        padded = conv2d.padded_outputs(flat, tiling)
        _, vectors = self._epilogue(attrs, extra, spec.outputs, padded)
        out_shape = conv2d.output_shape(flat, tiling)
        if residual:
            vectors[3] = self.reshaped(vectors[3], out_shape)
        packed = [qop.constant(conv2d.pack_weight(weight, flat, tiling))]
        if scale is not None:
            packed.append(qop.constant(conv2d.pack_scale(scale, flat, tiling)))
        result = self.call(
            conv2d.kernel(flat, tiling, "dense" if qop.is_call(call, qop.QDENSE) else "conv2d"),
            [self.reshaped(x, conv2d.input_shape(flat, tiling)), *packed,
             _bias(bias, spec.outputs, padded), *vectors],
            relax.TensorType(out_shape, attrs["out_dtype"]),
            call,
        )  # fmt: skip
        return self.reshaped(result, shape or static_shape(call))

    def _narrowed(
        self,
        spec: conv2d.Conv2DSpec,
        attrs: dict[str, Any],
        weight: Any,
        multiplier: Any,
        layer: str,
    ) -> tuple[conv2d.Conv2DSpec, Any, Any]:
        """Return the spec with what the weights allow, the weight to store, and groups' factors.

        Groups follow the runs of whole rows of the window; where dilation or grouped channels cut
        these up, the products of weights and multipliers are kept as 8-bit weights.
        """
        held, scale = BitChoice.parse(attrs["choice"]).weight, None
        w_bits, w_group = conv2d.container_of(held.bits), held.group
        if w_group and not spec.groupable:
            w_bits, w_group, weight = 8, 0, _multiplied(weight, multiplier)
        spec = replace(spec, w_bits=w_bits, w_group=w_group)
        if w_group:
            scale = conv2d.group_scale(multiplier, spec, layer)
        if w_bits == 4:
            conv2d.check_narrow(weight, layer)
        if multiplies_in_pairs(self.machine.target):
            chain = conv2d.provable_chain(weight, spec, attrs["input_qmin"], attrs["input_qmax"])
            spec = replace(spec, chain=chain)
        return spec, weight, scale

    def _depthwise(
        self, call: relax.Call, attrs: dict[str, Any], spec: conv2d.Conv2DSpec, weight: Any,
        args: list[relax.Expr],
    ) -> relax.Expr:  # fmt: skip
        x, bias, *extra = args
        epilogue, inputs = self._epilogue(attrs, extra)
        layer = depthwise_conv2d.DepthwiseConv2DSpec(
            spec.batch, spec.height, spec.width, spec.channels, spec.outputs // spec.channels,
            spec.kernel, spec.strides, spec.padding, spec.dilation, spec.input_zero_point,
            epilogue, dtype_of(inputs[3]) if attrs.get("residual", 0) else "uint8",
        )  # fmt: skip
        tiling = self.tilings(
            "depthwise_conv2d", layer, span_name(call)
        ) or depthwise_conv2d.default_tiling(layer, self.machine)
        padded = depthwise_conv2d.padded_outputs(layer, tiling)
        _, vectors = self._epilogue(attrs, extra, spec.outputs, padded)
        packed = qop.constant(depthwise_conv2d.pack_weight(weight[..., 0], layer, tiling))
        count = 4 if attrs.get("slopes", 0) else 3
        biases, *vectors[:count] = (
            qop.constant(depthwise_conv2d.pack_vector(qop.constant_array(v), layer, tiling))
            for v in (_bias(bias, spec.outputs, padded), *vectors[:count])
        )
        return self.call(
            depthwise_conv2d.kernel(layer, tiling),
            [x, packed, biases, *vectors],
            call.ty,
            call,
        )

    def _conv2d_transpose(self, call: relax.Call) -> relax.Expr:
        attrs = qop.attributes(call)
        (x, kernel, bias, *extra), multiplier = self._operands(call)
        array = _multiplied(qop.constant_array(kernel), multiplier)
        outputs = array.shape[0]
        if _tiles(attrs, array) and not attrs.get("residual", 0):
            return self._as_pointwise(call, attrs, x, array, bias, extra)
        epilogue, inputs = self._epilogue(attrs, extra)
        layer = conv2d_transpose.Conv2DTransposeSpec(
            *nhwc_shape(x), outputs, tuple(array.shape[1:3]), tuple(attrs["strides"]),
            tuple(attrs["padding"]), tuple(attrs["output_padding"]), tuple(attrs["dilation"]),
            attrs["groups"], attrs["input_zero_point"], epilogue,
            dtype_of(inputs[3]) if attrs.get("residual", 0) else "uint8",
        )  # fmt: skip
        tiling = self.tilings(
            "conv2d_transpose", layer, span_name(call)
        ) or conv2d_transpose.default_tiling(layer, self.machine)
        padded = conv2d_transpose.padded_outputs(layer, tiling)
        _, vectors = self._epilogue(attrs, extra, outputs, padded)
        packed = conv2d_transpose.pack_weight(array, layer, tiling)
        biases = conv2d_transpose.pack_bias(qop.constant_array(bias), array, layer, tiling)
        return self.call(
            conv2d_transpose.kernel(layer, tiling),
            [x, qop.constant(packed), qop.constant(biases), *vectors],
            call.ty,
            call,
        )

    def _as_pointwise(
        self, call: relax.Call, attrs: dict[str, Any], x: relax.Expr, weight: Any,
        bias: relax.Expr, extra: list[relax.Expr],
    ) -> relax.Expr:  # fmt: skip
        """Lower a transposed convolution whose windows do not overlap.

        Every element of the kernel is an output channel of a 1x1 convolution; then a row of the
        input becomes ``kh`` rows of the output. Of few channels the vectors are full that way. The
        bias takes the input's zero point off all elements: each channel has that of the others
        back, as in `conv2d_transpose.pack_bias`.
        """
        outputs, rows, columns, channels = weight.shape
        batch, height, width, _ = static_shape(x)
        taps = rows * columns

        def repeated(vector: relax.Expr) -> relax.Expr:
            values = np.broadcast_to(qop.constant_array(vector).reshape(-1), (outputs,))
            return qop.constant(np.tile(values, taps))

        pointwise = conv2d.Conv2DSpec(batch, height, width, channels, taps * outputs)
        packed = np.ascontiguousarray(weight.transpose(1, 2, 0, 3))
        sums = packed.sum(axis=3, dtype=np.int64)
        unmet = (sums.sum(axis=(0, 1)) - sums).reshape(-1) * attrs["input_zero_point"]
        biases = qop.constant_array(repeated(bias)) + unmet
        vectors = 4 if attrs.get("slopes", 0) else 3
        repeats = [*map(repeated, extra[:vectors]), *extra[vectors:]]
        args = [x, qop.constant(biases.astype(np.int32)), *repeats]
        result = self._contract(
            call, attrs, pointwise, packed.reshape(taps * outputs, 1, 1, channels), args,
            shape=(batch, height, width, taps * outputs),
        )  # fmt: skip
        shape = (batch * height, width, rows, columns * outputs)
        spec = structural.PermuteSpec(shape, (0, 2, 1, 3), attrs["out_dtype"])
        out = relax.TensorType(structural.output_shape(spec), attrs["out_dtype"])
        kernel = structural.kernel(spec, self.machine)
        return self.reshaped(
            self.call(kernel, [self.reshaped(result, shape)], out, call), static_shape(call)
        )

    # -- pooling --------------------------------------------------------------------------------

    def _pool_sum(self, call: relax.Call) -> relax.Expr:
        attrs = qop.attributes(call)
        x, *extra = (self.lookup(a) for a in call.args)
        epilogue, vectors = self._epilogue(attrs, extra)
        spec = pool.SumPoolSpec(
            nhwc_shape(x), tuple(attrs["pool_size"]), tuple(attrs["strides"]),
            tuple(attrs["padding"]), tuple(attrs["dilation"]), nhwc_shape(call)[1:3],
            dtype_of(x), attrs["input_zero_point"], epilogue, _parameter_shape(vectors),
            dtype_of(vectors[3]) if attrs.get("residual", 0) else "uint8",
        )  # fmt: skip
        return self.call(pool.kernel(spec, self.machine), [x, *vectors], call.ty, call)

    def _max_pool(self, call: relax.Call) -> relax.Expr | None:
        a = call.attrs
        if str(a.layout) != "NHWC" or dtype_of(call) not in ("uint8", "int16"):
            return None
        x = self.lookup(call.args[0])
        size, strides, padding, dilation = (
            integers(getattr(a, key)) for key in ("pool_size", "strides", "padding", "dilation")
        )
        spec = pool.MaxPoolSpec(
            nhwc_shape(x), size, strides, padding, dilation, nhwc_shape(call)[1:3], dtype_of(x)
        )
        return self.call(pool.kernel(spec, self.machine), [x], call.ty, call)

    def _global_max(self, call: relax.Call) -> relax.Expr | None:
        x = self.lookup(call.args[0])
        rank = len(static_shape(x))
        axes = [int(v) % rank for v in (call.attrs.axis or [])]
        if rank != 4 or sorted(axes) != [1, 2] or dtype_of(call) not in ("uint8", "int16"):
            return None
        shape = nhwc_shape(x)
        spec = pool.MaxPoolSpec(
            shape, (shape[1], shape[2]), (1, 1), (0, 0, 0, 0), (1, 1), (1, 1), dtype_of(x)
        )
        out = relax.TensorType((shape[0], 1, 1, shape[3]), dtype_of(x))
        result = self.call(pool.kernel(spec, self.machine), [x], out, call)
        return self.reshaped(result, static_shape(call))

    # -- elementwise ----------------------------------------------------------------------------

    def _requantize(self, call: relax.Call) -> relax.Expr:
        attrs = qop.attributes(call)
        x, *extra = (self._of_a_rank(a) for a in call.args)
        attrs["residual"] = int(len(extra) > 3 and not attrs.get("slopes", 0))
        epilogue, vectors = self._folded_epilogue(attrs, extra)
        residual = vectors[3] if attrs["residual"] else None
        spec = elementwise.RequantizeSpec(
            static_shape(call) or (1,), dtype_of(x), epilogue, _parameter_shape(vectors),
            static_shape(residual) if residual is not None else None,
            dtype_of(residual) if residual is not None else "uint8", static_shape(x),
        )  # fmt: skip
        return self._elementwise(spec, [x, *vectors], call)

    def _multiply(self, call: relax.Call) -> relax.Expr:
        attrs = qop.attributes(call)
        a, b, *extra = (self._of_a_rank(arg) for arg in call.args)
        epilogue, vectors = self._epilogue(attrs, extra)
        spec = elementwise.MultiplySpec(
            static_shape(a), static_shape(b), attrs["a_zero_point"], attrs["b_zero_point"],
            epilogue, _parameter_shape(vectors),
            dtype_of(vectors[3]) if attrs.get("residual", 0) else "uint8",
        )  # fmt: skip
        return self._elementwise(spec, [a, b, *vectors], call)

    def _table(self, call: relax.Call) -> relax.Expr:
        q, values = (self._of_a_rank(a) for a in call.args)
        spec = elementwise.TableSpec(static_shape(q), dtype_of(values))
        return self._elementwise(spec, [q, values], call)

    def _of_a_rank(self, expr: relax.Expr) -> relax.Expr:
        """Return an operand of an elementwise kernel, a scalar as a vector of one element."""
        found = self.lookup(expr)
        return found if static_shape(found) else self.reshaped(found, (1,))

    def _elementwise(
        self, spec: elementwise.Spec, args: list[relax.Expr], call: relax.Call
    ) -> relax.Expr:
        out = relax.TensorType(elementwise.output_shape(spec), dtype_of(call))
        kernel = elementwise.kernel(spec, self.machine)
        return self.reshaped(self.call(kernel, args, out, call), static_shape(call))

    # -- borders --------------------------------------------------------------------------------

    def _quantize(self, call: relax.Call) -> relax.Expr:
        return self._quantize_border(call, call, to_nhwc=False)

    def _quantize_border(
        self, call: relax.Call, result: relax.Call, *, to_nhwc: bool
    ) -> relax.Expr:
        attrs = qop.attributes(call)
        x = self.lookup(call.args[0])
        spec = border.QuantizeSpec(
            static_shape(x), attrs["scale"], attrs["zero_point"], attrs["qmin"], attrs["qmax"],
            attrs["out_dtype"], to_nhwc=to_nhwc,
        )  # fmt: skip
        return self.call(border.kernel(spec, self.machine), [x], result.ty, call)

    def _dequantize(self, call: relax.Call) -> relax.Expr:
        attrs = qop.attributes(call)
        source, scale = call.args[0], call.args[1]
        producer = self.producer.get(source) if isinstance(source, relax.Var) else None
        to_nchw = False
        if qop.is_call(producer, "relax.permute_dims") and _axes(producer) == TO_NCHW:
            source, to_nchw = producer.args[0], True
        q = self.lookup(source)
        scales = _full_rank(qop.constant_array(scale), attrs["axis"], len(static_shape(call)))
        spec = border.DequantizeSpec(
            static_shape(q), dtype_of(q), attrs["zero_point"], scales.shape, to_nchw
        )
        kernel = border.kernel(spec, self.machine)
        return self.call(kernel, [q, qop.constant(scales)], call.ty, call)

    # -- float ----------------------------------------------------------------------------------

    def _recurrent(self, call: relax.Call) -> relax.Expr:
        a = qop.attributes(call)
        args = [self.lookup(arg) for arg in call.args]
        steps, batch, hidden = static_shape(call)
        spec = recurrent_f32.RecurrentSpec(
            steps, batch, hidden, a["kind"], bool(a["reverse"]), bool(a["reset_first"]),
            a["activation"], a["state"], static_shape(args[3])[0],
        )  # fmt: skip
        kernel = recurrent_f32.kernel(spec, self.machine)
        return self.call(kernel, args, call.ty, call)

    def _group_norm(self, call: relax.Call) -> relax.Expr:
        spec = group_norm_f32.GroupNormSpec(
            static_shape(call), int(call.attrs.num_groups), float(call.attrs.epsilon)
        )
        x, gamma, beta = (self.lookup(a) for a in call.args)
        out = relax.TensorType((spec.rows, spec.channels, spec.positions), "float32")
        rows = self.reshaped(x, (spec.rows, spec.channels * spec.positions))
        kernel = group_norm_f32.kernel(spec, self.machine)
        return self.reshaped(self.call(kernel, [rows, gamma, beta], out, call), static_shape(call))

    # -- movement -------------------------------------------------------------------------------

    def _moved(self, spec: structural.Spec, args: list[relax.Expr], call: relax.Call) -> relax.Expr:
        kernel = structural.kernel(spec, self.machine)
        return self.call(kernel, args, call.ty, call)

    def _permute(self, call: relax.Call) -> relax.Expr:
        """Fuse the transpose after a quantize into it; the plain quantize is then dead."""
        source = call.args[0]
        producer = self.producer.get(source) if isinstance(source, relax.Var) else None
        alone = qop.is_call(producer, qop.QUANTIZE) and self.uses[source] == 1
        if alone and _axes(call) == TO_NHWC:
            return self._quantize_border(producer, call, to_nhwc=True)
        x = self.lookup(source)
        shape = static_shape(x)
        axes = _axes(call)
        array = qop.constant_array(x)
        if array is not None:
            return qop.constant(array.transpose(axes))
        return self._moved(structural.PermuteSpec(shape, axes, dtype_of(x)), [x], call)

    def _concat(self, call: relax.Call) -> relax.Expr:
        inputs = [self.lookup(f) for f in call.args[0].fields]
        shapes = tuple(static_shape(x) for x in inputs)
        axis = int(call.attrs.axis) % len(shapes[0])
        return self._moved(structural.ConcatSpec(shapes, axis, dtype_of(call)), inputs, call)

    def _broadcast(self, call: relax.Call) -> relax.Expr | None:
        array = qop.constant_array(self.lookup(call.args[0]))
        if array is None:
            return None
        return qop.constant(np.broadcast_to(array, static_shape(call)))

    def _slice(self, call: relax.Call) -> relax.Expr | None:
        x = self.lookup(call.args[0])
        if not all(isinstance(a, relax.Tuple) for a in call.args[1:]):
            return None
        shape, out = static_shape(x), static_shape(call)
        begin, step = [0] * len(shape), [1] * len(shape)
        axes, begins, _ends, *strides = (
            [int(getattr(v, "value", v)) for v in a.fields] for a in call.args[1:]
        )
        for i, axis in enumerate(axes):
            step[axis] = strides[0][i] if strides else 1
            start = begins[i] + (shape[axis] if begins[i] < 0 else 0)
            begin[axis] = min(max(start, 0), shape[axis] - 1 if step[axis] < 0 else shape[axis])
        spec = structural.SliceSpec(shape, tuple(begin), tuple(step), out, dtype_of(x))
        return self._moved(spec, [x], call)

    def _pad(self, call: relax.Call) -> relax.Expr | None:
        widths = [int(v) for v in call.attrs.pad_width]
        if min(widths) < 0:
            return None
        x = self.lookup(call.args[0])
        value = int(float(call.attrs.pad_value))
        spec = structural.PadSpec(
            static_shape(x), tuple(widths[::2]), tuple(widths[1::2]), value, dtype_of(x),
            str(call.attrs.pad_mode),
        )  # fmt: skip
        return self._moved(spec, [x], call)

    def _resize(self, call: relax.Call) -> relax.Expr | None:
        a = call.attrs
        mode, rounding = str(a.coordinate_transformation_mode), str(a.rounding_method)
        if str(a.layout) != "NHWC" or mode == "tf_crop_and_resize":
            return None
        x = self.lookup(call.args[0])
        extents, size = nhwc_shape(x)[1:3], nhwc_shape(call)[1:3]
        if str(a.method) == "linear":
            taps = [
                np.stack(linear(coordinates(extent, target, mode), extent), 1).astype(np.int32)
                for extent, target in zip(extents, size, strict=True)
            ]
            layer = linear_resize.LinearResizeSpec(nhwc_shape(x), size, dtype_of(x))
            kernel = linear_resize.kernel(layer, self.machine)
            return self.call(kernel, [x, *map(qop.constant, taps)], call.ty, call)
        if str(a.method) != "nearest_neighbor":
            return None
        rows, columns = (
            nearest(coordinates(extent, target, mode), extent, mode, rounding).astype(np.int32)
            for extent, target in zip(extents, size, strict=True)
        )
        spec = structural.ResizeSpec(nhwc_shape(x), size, dtype_of(x))
        return self._moved(spec, [x, qop.constant(rows), qop.constant(columns)], call)


def _tiles(attrs: dict[str, Any], weight: Any) -> bool:
    """Whether the windows of a transposed convolution lie side by side and fill the output."""
    return (
        tuple(attrs["strides"]) == tuple(weight.shape[1:3])
        and not any(attrs["padding"]) and not any(attrs["output_padding"])
        and tuple(attrs["dilation"]) == (1, 1) and attrs["groups"] == 1
    )  # fmt: skip


def _multiplied(weight: Any, multiplier: Any) -> Any:
    """Return the weight times the multipliers of its groups, int8, for kernels without groups."""
    return weight if multiplier is None else weight * multiplier


def _is_integer(var: relax.Var) -> bool:
    types = var.ty.fields if isinstance(var.ty, relax.TupleType) else [var.ty]
    return all(str(t.dtype.dtype) in ("uint8", "int8", "int16", "int32") for t in types)


def _moves_nothing(permute: relax.Call) -> bool:
    """Whether only extents of 1 change places."""
    shape = static_shape(permute.args[0])
    moved = [axis for axis in _axes(permute) if shape[axis] > 1]
    return moved == sorted(moved)


def _axes(call: relax.Call) -> tuple[int, ...]:
    rank = len(call.args[0].ty.shape.values)
    return tuple(int(a) for a in call.attrs.axes or reversed(range(rank)))


def _per_channel(vector: Any, channels: int, padded: int) -> Any:
    values = np.zeros(padded, np.int64)
    values[:channels] = vector
    return values


def _bias(bias: relax.Expr, channels: int, padded: int) -> relax.Expr:
    return qop.constant(_per_channel(qop.constant_array(bias), channels, padded).astype(np.int32))


def _full_rank(values: Any, axis: int, rank: int) -> Any:
    """Shape one number per channel so that it broadcasts; a single number becomes a vector."""
    if values.size == 1:
        return values.reshape(1)
    if values.ndim != 1:
        return values
    return values.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def _parameter_shape(vectors: list[relax.Expr]) -> tuple[int, ...]:
    return static_shape(vectors[0]) if vectors else (1,)


@tvm.ir.transform.module_pass(opt_level=0, name="LowerToKernels")
class LowerToKernels:
    """Lower the integer operators of a module (see the module's description).

    Parameters
    ----------
    machine : Machine
        Threads that the kernels divide their work for.
    tilings : callable, optional
        Where tuned tilings come from; see `Tilings`.
    """

    def __init__(self, machine: Machine, tilings: Tilings = default_tilings) -> None:
        self.machine = machine
        self.tilings = tilings

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the L3 module."""
        return _Lowerer(module, self.machine, self.tilings).rewrite()
