"""Put what was trained on the twin back into the Relax graph that it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import tvm
from torch import Tensor
from tvm import relax

from tvmquant import formats
from tvmquant.formats import Uniform
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter
from tvmquant.twin.quantizer_module import Quantizer


class _Writer(DataflowRewriter):
    def __init__(
        self,
        module: tvm.IRModule,
        constants: Mapping[relax.Expr, Tensor],
        quantizers: Mapping[str, Quantizer],
    ) -> None:
        super().__init__(module)
        self.constants = constants
        self.quantizers = quantizers

    def lookup(self, expr: relax.Expr) -> relax.Expr:
        """Return an operand with the present numbers."""
        if isinstance(expr, tvm.ir.GenericConst) and expr in self.constants:
            present = _array(self.constants[expr])
            kept = np.array_equal(present, expr.value.numpy(), equal_nan=True)
            return expr if kept else qop.constant(present)
        return super().lookup(expr)

    def visit_binding(self, _var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        """Give a fake_quant the numbers of its quantizer."""
        if not qop.is_call(value, qop.FAKE_QUANT):
            return None
        attrs = qop.attributes(value)
        quantizer = self.quantizers[attrs["id"]]
        numbers = [_array(quantizer.scale), _array(quantizer.zero_point)]
        given = [qop.constant_array(arg) for arg in value.args[1:3]]
        ends = {"qmin": int(quantizer.qmin), "qmax": int(quantizer.qmax)}
        same = all(np.array_equal(a, b) for a, b in zip(numbers, given, strict=True))
        if same and all(attrs[name] == end for name, end in ends.items()):
            return None
        held = formats.parse(attrs["format"])
        if isinstance(held, Uniform) and ends != {name: attrs[name] for name in ends}:
            other = formats.narrowest(**ends, signed=held.signed)
            attrs["format"] = replace(other, group=held.group).name
        constants = [qop.constant(number) for number in numbers]
        args = [self.lookup(value.args[0]), *constants, *value.args[3:]]
        return qop.emit(qop.FAKE_QUANT, args, attrs | ends, value.span)


def written_back(
    module: tvm.IRModule,
    constants: Mapping[relax.Expr, Tensor],
    quantizers: Mapping[str, Quantizer],
) -> tvm.IRModule:
    """Return a graph with other numbers.

    Parameters
    ----------
    module : tvm.IRModule
    constants : mapping of relax.Expr to tensor
        New values of constants of ``main``, of their shapes and types.
    quantizers : mapping of str to Quantizer
        By the id of every fake_quant.
    """
    return _Writer(module, constants, quantizers).rewrite()


def _array(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy()
