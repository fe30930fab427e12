"""Bits of tensors, for the layers that read bits; the bytes of a sign are dead then."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from tvm import relax

from tvmquant.arithmetic import Array, requantize
from tvmquant.formats import BINARY_MIDDLE
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.tensor_types import dtype_of, static_shape
from tvmquant.passes.lowering.emitter import Lowerer
from tvmquant.schedules import pack_bits
from tvmquant.schedules.isa import DotProduct

_BYTES = np.arange(256)


@dataclass(frozen=True)
class _Signs:
    """Signs of bytes by a threshold for each channel.

    Parameters
    ----------
    source : Expr
        The bytes.
    least : int array (C,)
        From which on a channel has the upper level.
    turned : bool array (C,)
        Where it has the lower one instead.
    node : Call
        Whose signs they are.
    """

    source: relax.Expr
    least: Array
    turned: Array
    node: relax.Call


def packed(
    lowerer: Lowerer, tensor: relax.Expr, dot: DotProduct, planes: int, node: relax.Call
) -> relax.Expr:
    """Return the bits of a tensor, those of each once for all that read them.

    Parameters
    ----------
    lowerer : Lowerer
    tensor : Expr
        Of the old graph: bytes below or above the middle, or of several bits.
    dot : DotProduct
        What reads the bits.
    planes : int
        Bits of a byte; 1 for signs.
    node : Call
        The layer that does.
    """
    key = tensor, dot.name, planes
    if key not in lowerer.bits:
        shape = static_shape(tensor)
        found = _signs(lowerer, tensor) if planes == 1 else None
        signs = found or _Signs(
            tensor, np.full(shape[-1], BINARY_MIDDLE), np.zeros(shape[-1], np.bool_), node
        )
        spec = pack_bits.PackSpec(math.prod(shape[:-1]), shape[-1], dot, planes)
        source = lowerer.reshaped(lowerer.lookup(signs.source), (spec.pixels, spec.channels))
        arguments = [
            source,
            qop.constant(signs.least.astype(np.uint8)[None]),
            qop.constant(pack_bits.elements_of(signs.turned, dot)[None]),
        ]
        out = relax.TensorType((planes, spec.pixels, spec.elements), dot.input_dtype)
        kernel = pack_bits.kernel(spec, lowerer.machine)
        lowerer.bits[key] = lowerer.call(kernel, arguments, out, signs.node)
    return lowerer.bits[key]


def _signs(lowerer: Lowerer, tensor: relax.Expr) -> _Signs | None:
    """Return what makes signs of bytes; None where that is another operator."""
    call = lowerer.producer.get(tensor) if isinstance(tensor, relax.Var) else None
    if not qop.is_call(call, qop.REQUANTIZE, qop.TABLE):
        return None
    source, *parameters = call.args
    if dtype_of(source) != "uint8" or static_shape(source) != static_shape(tensor):
        return None
    levels = _levels(call, parameters)
    if levels is None:
        return None
    positive = np.broadcast_to(levels > BINARY_MIDDLE, (256, static_shape(tensor)[-1]))
    # a channel that changes once is one by a threshold; of one that does not it is the least byte
    changes = positive[1:] != positive[:-1]
    if np.any(changes.sum(axis=0) > 1):
        return None
    constant = ~changes.any(axis=0)
    least = np.where(constant, 0, changes.argmax(axis=0) + 1)
    return _Signs(source, least, ~positive[-1], call)


def _levels(call: relax.Call, parameters: list[relax.Expr]) -> Array | None:
    """Return what a call makes of every byte, (256, C) or (256, 1); None where that differs."""
    arrays = [qop.constant_array(p) for p in parameters]
    if qop.is_call(call, qop.TABLE):
        return np.asarray(arrays[0][:, None])
    attrs = qop.attributes(call)
    if len(arrays) != 3 or any(a.size != a.shape[-1] for a in arrays):
        return None
    multiplier, shift, offset = (a.reshape(-1) for a in arrays)
    return requantize(
        [(_BYTES[:, None], attrs["acc_zero_point"], multiplier)], offset, shift,
        attrs["output_zero_point"], attrs["qmin"], attrs["qmax"], attrs["out_dtype"],
        ties_to_even=bool(attrs.get("ties_to_even", 0)),
    )  # fmt: skip
