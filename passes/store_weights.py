"""Take large constants out of the virtual machine's executable, into the library itself (L3).

Before::

    lv = call_tir(conv2d_3x3, (x, weight, bias, ...))

After, ``weight`` being the third of those that the module's attribute ``tvmquant.weights`` lists::

    w = call_pure_packed("tvmquant_weight", 2)
    lv = call_tir(conv2d_3x3, (x, w, bias, ...))

TVM copies an executable's constants twice while it loads it, and once to keep. What the library
holds as data is read where the system maps it, by all processes that load it.

Weights of fewer bits than their kernel's container are held packed, in the format that lowering
noted of them (`FORMATS`, by their `digest`), and unpacked when they are read first: the file is
smaller, while each process has a copy of its own of what kernels read. Where channels fit fewer
bits than others (of layers whose widths were learned), each is held at its own width; which they
are, `CHANNELS` says likewise. Their layer runs whole, at its widest channel's container. Two
kernels, of channels sorted by container, take 1.02 to 1.03 times as long on AVX512-VNNI, whose INT4
kernels are no faster, and 0.95 to 1.0 on AVX2, with half of the channels and inputs of 4 bits (four
3x3 and 1x1 layers of ResNet-50's shapes, one thread).

Of a library of several bit widths (`merge_widths`), a layer's weight of the widest is held as it
would be alone, and so much of each other as makes it of that (`derived_weights`), where it follows.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Final

import numpy as np
import tvm
from tvm import relax

from tvmquant import formats
from tvmquant.arithmetic import Array
from tvmquant.formats import BINARY, INT8, LEAST_BITS, Format, Uniform
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import span_name
from tvmquant.passes.derived_weights import derivation_of
from tvmquant.schedules.weight_layout import WeightLayout

FUNCTION: Final = "tvmquant_weight"
WEIGHTS: Final = "tvmquant.weights"
FORMATS: Final = "tvmquant.weight_formats"
LAYOUTS: Final = "tvmquant.weight_layouts"
CHANNELS: Final = "tvmquant.weight_channels"
# Functions of a module in the order in which their weights are stored; others follow.
FIRST: Final = ("main", "raw")

# Calling the function takes longer than reading a register, about 0.1 microseconds, so small ones
# stay where they are,
LEAST_BYTES = 4096
# but for those that packing makes smaller by so much: what describes one takes half of it.
LEAST_SAVED = 256
# Channels of their own widths are to make a weight smaller by this share: what is not packed at all
# is not copied either.
LEAST_SHARE: Final = 1 / 16
# What describes a weight that is derived takes so much beside its channels' ratios.
DERIVED_BYTES: Final = 128
# What holds weights of one bit among zeros.
TERNARY = Uniform(LEAST_BITS, signed=True)


def digest(weight: Array) -> str:
    """Return what tells the contents of a kernel's weight apart."""
    return hashlib.sha256(np.ascontiguousarray(weight).tobytes()).hexdigest()


def container_bits(weight: Array, held: Format) -> int:
    """Return the bits that each value of a kernel's weight takes.

    Parameters
    ----------
    weight : array
        Of the integers of an unsigned format; of signed integers; or of signed ones in uint8: two
        in a byte, each 8 more than it is, the lower half first (`schedules.conv2d_packing`).
    held : Format
        That its values fit.
    """
    pairs = weight.dtype == np.uint8 and held.qmin < 0
    return 4 if pairs else 8 * weight.dtype.itemsize


def values_of(weight: Array, held: Format) -> Array:
    """Return the integers that a kernel's weight holds, in order; parameters as above."""
    if container_bits(weight, held) > 4:
        return weight.reshape(-1)
    halves = np.stack([weight & 15, weight >> 4], axis=-1).reshape(-1)
    return halves.astype(np.int8) - np.int8(8)


def described(held: Format, layout: WeightLayout) -> str:
    """Return what `LAYOUTS` says of a kernel's weight."""
    return json.dumps([held.name, layout.dumps()])


@relax.expr_functor.mutator
class _Storer(relax.PyExprMutator):  # type: ignore[misc]  # TVM's classes are untyped
    """Rewrites functions, and gathers the constants that they share."""

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        attrs = module.attrs or {}
        noted, layouts = attrs.get(FORMATS) or {}, attrs.get(LAYOUTS) or {}
        self.formats = {str(key): str(name) for key, name in noted.items()}
        channels = attrs.get(CHANNELS) or {}
        self.channels = {str(key): (int(axes[0]), int(axes[1])) for key, axes in channels.items()}
        self.layouts = {str(key): json.loads(str(text)) for key, text in layouts.items()}
        self.weights: list[dict[str, Any]] = []
        self.indices: dict[tuple[object, ...], int] = {}
        # of each layer: the weight that others may follow from, and where it is stored and how
        self.widest: dict[str, tuple[Array, dict[str, Any]]] = {}
        self.derives = any(var.name_hint not in FIRST for var in functions_of(module))

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        """Replace the large constants among a kernel's operands."""
        kernel = call.args[0] if call.args else None
        if isinstance(call.op, tvm.ir.GlobalVar) or not isinstance(kernel, tvm.ir.GlobalVar):
            return super().visit_call_(call)
        layer = span_name(call)
        operands = relax.Tuple([self._operand(operand, layer) for operand in call.args[1].fields])
        args = [kernel, operands, *map(self.visit_expr, call.args[2:])]
        return relax.Call(call.op, args, call.attrs, call.ty_args, call.span)

    def _operand(self, operand: relax.Expr, layer: str) -> relax.Expr:
        array = qop.constant_array(operand)
        if array is None or array.dtype.kind not in "iuf":
            return self.visit_expr(operand)
        key = (array.shape, array.dtype.str, digest(array))
        if key not in self.indices:
            stored = self._derived(array, key[2], layer) or self._stored(array, key[2])
            if stored is None:
                return self.visit_expr(operand)
            self.indices[key] = len(self.weights)
            self.weights.append(stored)
        self._note(array, key, layer)
        index = tvm.tirx.IntImm("int64", self.indices[key])
        return self.builder_.emit(relax.op.call_pure_packed(FUNCTION, index, ty_args=operand.ty))

    def _note(self, array: Array, key: tuple[object, ...], layer: str) -> None:
        """Remember the weight of a layer that the same layer's others may follow from."""
        noted = self.layouts.get(str(key[2]))
        if not self.derives or noted is None or layer in self.widest:
            return
        held, layout = formats.parse(noted[0]), WeightLayout.loads(noted[1])
        index = self.indices[key]
        if "source" in self.weights[index]:
            return
        halves = held.name if container_bits(array, held) == 4 else ""  # which is packed, too
        self.widest[layer] = layout.unpacked(values_of(array, held)), {
            "source": index, "source_layout": noted[1],
            "source_format": str(self.weights[index]["format"]) or halves,
        }  # fmt: skip

    def _derived(self, array: Array, key: str, layer: str) -> dict[str, Any] | None:
        """Return what makes a weight of the layer's widest; None where it does not follow."""
        noted = self.layouts.get(key)
        if noted is None or layer not in self.widest:
            return None
        held, layout = formats.parse(noted[0]), WeightLayout.loads(noted[1])
        wide, source = self.widest[layer]
        values = layout.unpacked(values_of(array, held))
        if values.shape != wide.shape:
            return None
        found = derivation_of(wide, values, held)
        if found is None or held.bytes(values.size) <= 3 * len(values) + DERIVED_BYTES:
            return None
        ratios = np.concatenate([found.multiplier.view(np.uint8), found.shift.view(np.uint8)])
        return {
            "data": tvm.runtime.tensor(ratios), "shape": list(array.shape),
            "dtype": str(array.dtype), "format": "", "width": container_bits(array, held),
            "layout": noted[1], "qmax": found.qmax, **source,
        }  # fmt: skip

    def _stored(self, array: Array, key: str) -> dict[str, Any] | None:
        """Return what the library holds of a constant; None where the executable keeps it."""
        held, channels = self.formats.get(key, ""), self.channels.get(key)
        packed = _in_one_format(array, formats.parse(held)) if held else None
        if channels is not None and not self.derives:  # others are made of one width
            packed = _by_channel(array, channels, packed)
        shared = self.derives and key in self.layouts
        if packed is None and array.nbytes < (LEAST_SAVED if shared else LEAST_BYTES):
            return None
        plain = {"data": tvm.runtime.tensor(array), "format": "", "width": 0}
        return plain | (packed or {}) | {"shape": list(array.shape), "dtype": str(array.dtype)}


def _in_one_format(array: Array, held: Format) -> dict[str, Any] | None:
    """Return a weight packed in a format; None where that saves little."""
    width = container_bits(array, held)
    if held.bits >= width:
        return None
    values = values_of(array, held)
    if held == BINARY and not values.all():  # zeros, where extents are padded
        held = TERNARY
    packed = held.pack(values)
    if array.nbytes - packed.nbytes < LEAST_SAVED:
        return None
    return {"data": tvm.runtime.tensor(packed), "format": held.name, "width": width}


def _by_channel(
    array: Array, channels: tuple[int, int], other: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Return a weight whose channels are packed each at its width, or `other` if that is as good.

    Parameters
    ----------
    array : array
        Of signed integers of up to 8 bits, whatever holds them.
    channels : (int, int)
        Axes that count the channels: blocks, and those of a block.
    other : dict, optional
        The weight packed otherwise.
    """
    blocks, lanes = channels
    width = container_bits(array, INT8)
    shape = array.shape if width > 4 else (*array.shape, 2)
    values = values_of(array, INT8).reshape(shape)
    rows = np.moveaxis(values, channels, (0, 1)).reshape(shape[blocks] * shape[lanes], -1)
    widths = formats.channel_widths(rows)
    taken = int(widths.sum()) * rows.shape[1] // 8 + widths.size
    before = array.nbytes if other is None else int(other["data"].shape[0])
    if before - taken < max(LEAST_SAVED, LEAST_SHARE * before):
        return other
    extents = [n if axis in channels else 1 for axis, n in enumerate(shape)]
    bits = np.broadcast_to(widths.reshape(extents), shape)
    packed = tvm.runtime.tensor(formats.pack_widths(values, bits))
    runs = [math.prod(shape[lanes + 1 :]), shape[lanes], math.prod(shape[blocks + 1 : lanes])]
    return {"data": packed, "width": width, "widths": widths.tolist(), "runs": runs}


def functions_of(module: tvm.IRModule) -> list[tvm.ir.GlobalVar]:
    """Return the functions that call kernels, those of the widest first."""
    found = [var for var, f in module.functions_items() if isinstance(f, relax.Function)]
    return sorted(found, key=lambda var: (var.name_hint not in FIRST, var.name_hint))


@tvm.ir.transform.module_pass(opt_level=0, name="StoreWeights")
class StoreWeights:
    """Replace large constants that kernels read by calls of a function of the library."""

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with the attribute ``tvmquant.weights``, or unchanged without any."""
        storer = _Storer(module)
        for var in functions_of(module):
            storer.builder_.update_func(var, storer.visit_expr(module[var]))
        if not storer.weights:
            return module
        return storer.builder_.get().with_attr(WEIGHTS, storer.weights)
