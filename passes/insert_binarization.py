"""Make chosen layers of a float graph binary: signs of inputs, weights of few values (L0).

Before::

    lv = conv2d(x, w); lv1 = batch_norm(lv)[0]; lv2 = lv1 + r; lv3 = relu(lv2)

After, with thresholds, shortcuts and slopes (Liu et al., 2020, "ReActNet")::

    x_s = fake_quant(x + t) {format: "ubinary", fixed: 1}
    lv = conv2d(x_s, fake_quant(w) {format: "binary", fixed: 1})
    lv1 = batch_norm(lv)[0]; lv2 = lv1 + x; lv3 = prelu(lv2, slopes)

Weights keep their real numbers, from which training goes on (`tvmquant.training.binary`).

* A layer that no normalization follows gets one, whose shift is the layer's bias.
* *Shortcuts*: what a layer gets is added to what it gives, instead of what was added before, with
  the projection that made that. Where a layer halves the picture it is averaged over 2 x 2
  (stride x stride), where it multiplies the channels they are repeated (Liu et al., 2018,
  "Bi-Real Net").
* A ReLU gives numbers of one sign only. Those that a binary layer reads, or that follow one, become
  PReLUs with a slope for each channel, or clips to [-1, 1], or are left out; where they stay, signs
  are taken of what they read.
* ReActNet's RPReLU ``prelu(x - g) + z`` shifts as well. Here ``g`` is a part of the shift of the
  normalization before it, and ``z`` of that of the next one and of the next thresholds, up to the
  borders that a layer of other kind pads: the same functions, of fewer operators and roundings.

Requires canonical form (`CanonicalizeOps`) with normalizations in place.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from tvmquant import formats
from tvmquant.formats import BINARY
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.imported_quantizers import KNOWN, imported_sign
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of, span_name, used_vars, with_span
from tvmquant.passes.elementwise import scalar_bound
from tvmquant.passes.fold_batch_norm import BATCH_NORM
from tvmquant.passes.region_operators import is_mover, output_axis

CONV2D, MATMUL, ADD = "relax.nn.conv2d", "relax.matmul", "relax.add"
# As ReActNet's authors begin.
FIRST_SLOPE = 0.25
# As good as 0, which canonical form would leave out.
FIRST_THRESHOLD = float(np.finfo(np.float32).tiny)
EPSILON = 1e-5

Activation = Literal["relu", "hardtanh", "slopes", "none"]


@dataclass(frozen=True)
class Rewrite:
    """What becomes of a layer.

    Parameters
    ----------
    weight : str
        Name of the format that its weight gets.
    signs : bool
        Whether it reads signs.
    thresholds : bool
        Whether signs are those of what is above a number of each channel, 0 at first.
    shortcuts : bool
        Whether what it reads is added to what it gives.
    activation : {"relu", "hardtanh", "slopes", "none"}
        What becomes of a ReLU before or behind it, where it reads signs.
    """

    weight: str = BINARY.name
    signs: bool = True
    thresholds: bool = False
    shortcuts: bool = False
    activation: Activation = "relu"


@dataclass(frozen=True)
class _Block:
    """A layer, and what follows it alone.

    ``end`` is the variable of its normalized result: of the layer, of the sum with its bias, or of
    a normalization. ``total`` is that of the sum of it and another tensor, if there is one.
    """

    name: str
    bias: npt.NDArray[Any] | None
    end: relax.Var
    has_norm: bool
    total: relax.Var | None


class _Reader:
    """Finds blocks, and what cannot be one."""

    def __init__(self, function: relax.Function) -> None:
        self.producer = dict(bindings_of(function))
        self.readers: dict[relax.Var, list[relax.Var]] = {}
        # how many layers a tensor comes of, one after the other
        self.depth: dict[relax.Var, int] = dict.fromkeys(function.params, 0)
        for var, value in self.producer.items():
            for used in used_vars(value):
                self.readers.setdefault(used, []).append(var)
            before = max((self.depth[used] for used in used_vars(value)), default=0)
            self.depth[var] = before + qop.is_call(value, *qop.FLOAT_CONTRACTIONS)
        self.results = set(used_vars(function.body.body))

    def layers(self) -> dict[str, tuple[relax.Var, relax.Call]]:
        """Return convolutions and dense layers by their names."""
        return {
            span_name(value): (var, value)
            for var, value in self.producer.items()
            if qop.is_call(value, *qop.FLOAT_CONTRACTIONS)
        }

    def block(self, var: relax.Var, call: relax.Call) -> _Block:
        """Return the block of a layer."""
        end, bias, has_norm, total = var, None, False, None
        after = self._only_reader(end)
        if after is not None and qop.is_call(self.producer[after], ADD):
            constant = self._constant_beside(after, end)
            channels = int(call.ty.shape.values[output_axis(call)])
            if constant is not None and constant.size in (1, channels):
                bias = np.broadcast_to(constant.reshape(-1), (channels,))
                end, after = after, self._only_reader(after)
        if after is not None and qop.is_call(self.producer[after], BATCH_NORM):
            (end,) = [v for v in self.readers[after] if self.producer[v].index == 0]
            has_norm, after = True, self._only_reader(end)
        if after is not None and qop.is_call(self.producer[after], ADD):
            tensors = [arg for arg in self.producer[after].args if isinstance(arg, relax.Var)]
            alike = len(tensors) == 2 and all(arg.ty == end.ty for arg in tensors)
            total = after if alike else None
        return _Block(span_name(call), bias, end, has_norm, total)

    def relus_of(self, call: relax.Call, block: _Block) -> set[relax.Var]:
        """Return the variables of the ReLUs before and behind a layer."""
        before = self.clip_above(call.args[0])
        end = block.end if block.total is None else block.total
        behind = self.readers.get(end, [])
        found = {var for var in behind if self.is_relu(self.producer[var])}
        return found if before is None else found | {before}

    def clip_above(self, expr: relax.Expr) -> relax.Var | None:
        """Return the variable of the ReLU that a tensor comes of, moved or not."""
        while isinstance(expr, relax.Var):
            value = self.producer.get(expr)
            if self.is_relu(value):
                return expr
            moves = isinstance(value, relax.Call) and is_mover(value)
            if not moves or len(used_vars(value)) != 1:
                return None
            (expr,) = used_vars(value)
        return None

    def is_relu(self, value: Any) -> bool:
        """Whether a value is a ReLU, or one with an upper end."""
        if qop.is_call(value, "relax.clip"):
            return scalar_bound(value.args[1]) == 0.0 < scalar_bound(value.args[2])
        return qop.is_call(value, "relax.nn.relu")

    def _only_reader(self, var: relax.Var) -> relax.Var | None:
        found = self.readers.get(var, [])
        return found[0] if len(found) == 1 and var not in self.results else None

    def _constant_beside(self, total: relax.Var, operand: relax.Var) -> npt.NDArray[Any] | None:
        left, right = self.producer[total].args
        constant: npt.NDArray[Any] | None = qop.constant_array(
            right if left.same_as(operand) else left
        )
        return constant if operand.ty == total.ty else None


def reasons_against(module: tvm.IRModule, how: Rewrite) -> dict[str, str]:
    """Return why a layer of a graph cannot be rewritten so, in words, by its name; "" if it can."""
    layers = _Reader(module["main"]).layers()
    return {name: _reason(call, how) for name, (_, call) in layers.items()}


def _reason(call: relax.Call, how: Rewrite) -> str:
    if not qop.is_call(call, CONV2D, MATMUL):
        return "it is a transposed convolution"
    weight = qop.constant_array(call.args[1])
    if weight is None:
        return "its weight is quantized already, or no constant"
    if int(getattr(call.attrs, "groups", 1)) > 1:
        return "its channels are grouped, and few products make each sum"
    if weight.ndim not in (2, 4):
        return f"its weight has {weight.ndim} axes"
    if not how.shortcuts:
        return ""
    if weight.ndim == 2:
        return "it is dense, and no shortcut leads around it"
    return "" if _shortcut_shape(call) else (
        "no shortcut leads around it, which repeats channels and averages over its strides: "
        f"it makes {_extents(call)} of {_extents(call.args[0])}"
    )  # fmt: skip


def _extents(expr: relax.Expr) -> tuple[int, ...]:
    return tuple(int(n) for n in expr.ty.shape.values[1:])


def _shortcut_shape(call: relax.Call) -> tuple[int, int] | None:
    """Return the stride, and how often channels are repeated, of a shortcut; None if there is none.

    Of a convolution.
    """
    (channels, *sides), (outputs, *results) = _extents(call.args[0]), _extents(call)
    stride, other = (int(s) for s in call.attrs.strides)
    fits = stride == other and [side // stride for side in sides] == results
    if not fits or any(side % stride for side in sides) or outputs % channels:
        return None
    return stride, outputs // channels


class _Inserter(DataflowRewriter):
    def __init__(self, module: tvm.IRModule, layers: Collection[str], how: Rewrite) -> None:
        super().__init__(module)
        self.how = how
        self.reader = _Reader(self.function)
        self.blocks: dict[relax.Var, _Block] = {}
        self.by_end: dict[relax.Var, relax.Call] = {}
        # of a sum the end that takes its place: what a shortcut was added to
        self.totals: dict[relax.Var, relax.Var] = {}
        self.relus: set[relax.Var] = set()
        for name, (var, call) in self.reader.layers().items():
            if name not in layers:
                continue
            block = self.reader.block(var, call)
            self.blocks[var] = block
            self.by_end[block.end] = call
            if how.shortcuts and block.total is not None and self._is_deepest(block):
                self.totals[block.total] = block.end
            if how.signs and how.activation != "relu":
                self.relus |= self.reader.relus_of(call, block)

    def _is_deepest(self, block: _Block) -> bool:
        """Whether what else is added to a layer has fewer layers before it, as a projection has."""
        added, depth = used_vars(self.reader.producer[block.total]), self.reader.depth
        return all(v.same_as(block.end) or depth[v] < depth[block.end] for v in added)

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        new = None
        if var in self.blocks:
            new = self._layer(value, self.blocks[var].name)
        if var in self.totals:
            return self.lookup(self.totals[var])
        if var in self.relus:
            return self._activation(value)
        if var in self.by_end:
            return self._ended(var, value, new)
        return new

    def _layer(self, call: relax.Call, name: str) -> relax.Call:
        x = self.lookup(call.args[0])
        axis = 1 if qop.is_call(call, MATMUL) else 0
        if self.how.signs:
            x = self._signs(call, name)
        weight = few_valued_weight(
            qop.constant_array(call.args[1]), self.how.weight, axis=axis, name=name
        )
        args = [x, self.emit(weight, "weight_q")]
        return relax.Call(call.op, args, call.attrs, call.ty_args, call.span)

    def _signs(self, call: relax.Call, name: str) -> relax.Var:
        read, strict = call.args[0], False
        if self.how.activation == "relu":
            made = self.reader.producer.get(read)
            if made is not None and self.reader.is_relu(made):
                read = made.args[0]
            else:
                strict = self.reader.clip_above(read) is not None
        x = self.lookup(read)
        if self.how.thresholds:
            x = self.emit(_at(relax.op.add(x, _per_channel(call.args[0])), f"{name}.threshold"))
        return self.emit(imported_sign(x, 1.0, name=f"{name}.sign", strict=strict, span=call.span))

    def _ended(self, var: relax.Var, value: relax.Expr, new: relax.Expr | None) -> relax.Expr:
        """Return a layer's result, normalized, with its shortcut."""
        call = self.by_end[var]
        block = next(b for b in self.blocks.values() if b.end.same_as(var))
        if block.has_norm:
            end = self.emit(self.copy(value), str(var.name))
        else:
            bare = self.emit(new, str(var.name)) if new is not None else self.lookup(
                next(arg for arg in value.args if isinstance(arg, relax.Var))
            )  # fmt: skip
            end = self._normalized(bare, call, block)
        if not self.how.shortcuts:
            return end
        shape = _shortcut_shape(call)
        assert shape is not None
        stride, times = shape
        way = self.lookup(call.args[0])
        if stride > 1:
            size = (stride, stride)
            way = self.emit(_at(relax.op.nn.avg_pool2d(way, size, size), f"{block.name}.pool"))
        if times > 1:
            way = self.emit(_at(relax.op.concat([way] * times, axis=1), f"{block.name}.repeat"))
        return self.emit(_at(relax.op.add(end, way), f"{block.name}.shortcut"))

    def _normalized(self, x: relax.Expr, call: relax.Call, block: _Block) -> relax.Var:
        axis = output_axis(call)
        channels = int(call.ty.shape.values[axis])
        ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        shift = zeros if block.bias is None else block.bias.astype(np.float32)
        numbers = [qop.constant(array) for array in (ones, shift, zeros.copy(), ones.copy())]
        norm = relax.op.nn.batch_norm(
            x, *numbers, axis=axis % len(call.ty.shape.values), epsilon=EPSILON, training=False
        )
        norm = self.emit(_at(norm, f"{block.name}.norm"))
        return self.emit(relax.TupleGetItem(norm, 0))

    def _activation(self, relu: relax.Call) -> relax.Expr:
        x = self.lookup(relu.args[0])
        if self.how.activation == "none":
            return x
        if self.how.activation == "hardtanh":
            return _at(relax.op.clip(x, -1.0, 1.0), span_name(relu))
        axis = 1 if len(relu.ty.shape.values) == 4 else len(relu.ty.shape.values) - 1
        slopes = qop.constant(np.full(int(relu.ty.shape.values[axis]), FIRST_SLOPE, np.float32))
        return _at(relax.op.nn.prelu(x, slopes, axis), span_name(relu))


def few_valued_weight(weight: npt.NDArray[Any], held: str, *, axis: int, name: str) -> relax.Call:
    """Return the fake_quant of real numbers that few values are made of.

    Parameters
    ----------
    weight : float array, in the layout of its layer
    held : str
        Name of the format.
    axis : int
        Of the output channels.
    name : str
        Of the layer.

    Notes
    -----
    One scale for each output channel: the mean magnitude, or, of more levels, such that the
    largest number is the greatest level.
    """
    rows = np.abs(np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64))
    kept = formats.parse(held)
    scale = rows.mean(axis=1) if kept == BINARY else rows.max(axis=1) / kept.qmax
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    attrs = {
        **KNOWN, "scheme": "symmetric", "id": f"{name}.weight", "role": qop.WEIGHT,
        "format": held, "qmin": kept.qmin, "qmax": kept.qmax, "axis": axis, "groups": 1,
        "bounded": 0,
    }  # fmt: skip
    constants = [weight.astype(np.float32), scale.astype(np.float32), np.zeros(1, np.int32)]
    return qop.emit(qop.FAKE_QUANT, [qop.constant(array) for array in constants], attrs)


def _per_channel(x: relax.Expr) -> relax.Expr:
    """Return thresholds that broadcast along the channels of a tensor."""
    extents = [int(n) for n in x.ty.shape.values[1:]]
    shape = (extents[0], 1, 1) if len(extents) == 3 else (extents[-1],)
    return qop.constant(np.full(shape, FIRST_THRESHOLD, np.float32))


def _at(call: relax.Call, name: str) -> relax.Call:
    return with_span(call, name)


@tvm.ir.transform.module_pass(opt_level=0, name="InsertBinarization")
class InsertBinarization:
    """Make layers binary (see the module's description).

    Parameters
    ----------
    layers : collection of str
        Names of ONNX nodes, of which `reasons_against` has none.
    how : Rewrite
    """

    def __init__(self, layers: Collection[str], how: Rewrite) -> None:
        self.layers, self.how = layers, how

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the rewritten module; shortcuts that nothing reads any more are removed."""
        return _Inserter(module, self.layers, self.how).rewrite()
