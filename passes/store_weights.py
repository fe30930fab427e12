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
smaller, while each process has a copy of its own of what kernels read.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmquant import formats
from tvmquant.arithmetic import Array
from tvmquant.formats import BINARY, LEAST_BITS, Format, Uniform
from tvmquant.ir import quantized_ops as qop

FUNCTION = "tvmquant_weight"
WEIGHTS = "tvmquant.weights"
FORMATS = "tvmquant.weight_formats"

# Calling the function takes longer than reading a register, about 0.1 microseconds, so small ones
# stay where they are,
LEAST_BYTES = 4096
# but for those that packing makes smaller by so much: what describes one takes half of it.
LEAST_SAVED = 256
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


@relax.expr_functor.mutator
class _Storer(relax.PyExprMutator):  # type: ignore[misc]  # TVM's classes are untyped
    """Rewrites functions, and gathers the constants that they share."""

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        noted = (module.attrs or {}).get(FORMATS) or {}
        self.formats = {str(key): str(name) for key, name in noted.items()}
        self.weights: list[dict[str, Any]] = []
        self.indices: dict[tuple[object, ...], int] = {}

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        """Replace the large constants among a kernel's operands."""
        kernel = call.args[0] if call.args else None
        if isinstance(call.op, tvm.ir.GlobalVar) or not isinstance(kernel, tvm.ir.GlobalVar):
            return super().visit_call_(call)
        operands = relax.Tuple([self._operand(operand) for operand in call.args[1].fields])
        args = [kernel, operands, *map(self.visit_expr, call.args[2:])]
        return relax.Call(call.op, args, call.attrs, call.ty_args, call.span)

    def _operand(self, operand: relax.Expr) -> relax.Expr:
        array = qop.constant_array(operand)
        if array is None or array.dtype.kind not in "iuf":
            return self.visit_expr(operand)
        key = (array.shape, array.dtype.str, digest(array))
        if key not in self.indices:
            stored = self._stored(array, self.formats.get(key[2], ""))
            if stored is None:
                return self.visit_expr(operand)
            self.indices[key] = len(self.weights)
            self.weights.append(stored)
        index = tvm.tirx.IntImm("int64", self.indices[key])
        return self.builder_.emit(relax.op.call_pure_packed(FUNCTION, index, ty_args=operand.ty))

    def _stored(self, array: Array, held: str) -> dict[str, Any] | None:
        """Return what the library holds of a constant; None where the executable keeps it."""
        data, named = array, ""
        format = formats.parse(held) if held else None
        width = container_bits(array, format) if format else 0
        if format is not None and format.bits < width:
            values = values_of(array, format)
            if format == BINARY and not values.all():  # zeros, where extents are padded
                format = TERNARY
            packed = format.pack(values)
            if array.nbytes - packed.nbytes >= LEAST_SAVED:
                data, named = packed, format.name
        if not named and array.nbytes < LEAST_BYTES:
            return None
        shape, dtype = list(array.shape), str(array.dtype)
        return {
            "data": tvm.runtime.tensor(data), "shape": shape, "dtype": dtype, "format": named,
            "width": width if named else 0,
        }  # fmt: skip


@tvm.ir.transform.module_pass(opt_level=0, name="StoreWeights")
class StoreWeights:
    """Replace large constants that kernels read by calls of a function of the library."""

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with the attribute ``tvmquant.weights``, or unchanged without any."""
        storer = _Storer(module)
        for var, function in module.functions_items():
            if isinstance(function, relax.Function):
                storer.builder_.update_func(var, storer.visit_expr(function))
        if not storer.weights:
            return module
        return storer.builder_.get().with_attr(WEIGHTS, storer.weights)
