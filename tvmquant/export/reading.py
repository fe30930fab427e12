"""What the library computes of an annotated graph, beyond what its operators say.

The annotated graph is float: that a reader takes a tensor with one scale, which it is rounded to
first, or which integers a weight becomes, is decided where the graph is rounded. So it is rounded
here, and what is decided is noted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvmquant.arithmetic import FloatArray
from tvmquant.formats import Binary
from tvmquant.ir import quantized_ops as qop
from tvmquant.passes.accumulator import Accumulator, Contraction, Quantized, Term
from tvmquant.passes.insert_requantize import Integerizer
from tvmquant.passes.multipliers import Multipliers


class Reading(Integerizer):
    """Rounds an annotated (L1) graph and notes what is decided on the way.

    Attributes
    ----------
    values : dict of Var to Value
        What each variable of the graph has become.
    layers : dict of Var to Contraction
        The convolutions and dense layers, by the variables of their sums: the integers of the
        weight and the tensor that they multiply.
    bias_moves : dict of Var to float64 array of shape (1,) or (O,)
        By how much the bias of a layer with slopes moves to a whole step of its sums, by the
        variable of the weight.
    first_rounding : dict of Var to Quantized
        Of fake_quants with a scale for each channel, what functions are rounded to before: one.
    """

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.layers: dict[relax.Var, Contraction] = {}
        self.bias_moves: dict[relax.Var, FloatArray] = {}
        self.first_rounding: dict[relax.Var, Quantized] = {}
        # by the variable that is computed, and the integers that it reads
        self._rounded_for: dict[tuple[relax.Var, relax.Expr], Quantized] = {}
        self._current: relax.Var | None = None

    @classmethod
    def of(cls, module: tvm.IRModule) -> Reading:
        """Round a graph.

        Raises
        ------
        QuantizationError
            If a tensor has no scale, or cannot be rounded; names the node.
        """
        reading = cls(module)
        reading.rewrite()
        return reading

    def rounded_for(self, reader: relax.Var, operand: relax.Expr) -> Quantized | None:
        """Return what an operand is rounded to before it is read; None where it is read as it is.

        Parameters
        ----------
        reader : Var
            The variable that is computed.
        operand : Expr
            One of those that its call reads.
        """
        value = self.values.get(operand) if isinstance(operand, relax.Var) else None
        if not isinstance(value, Quantized):
            return None
        return self._rounded_for.get((reader, value.expr))

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        """Note which variable is computed."""
        self._current = var
        return super().visit_binding(var, value)

    def rescaled(self, x: Quantized, to: Quantized, name: str, call: relax.Call) -> Quantized:
        """Note a tensor that is rounded for its reader, and what a fake_quant rounds twice."""
        result = super().rescaled(x, to, name, call)
        if result is x:
            return result
        if not qop.is_call(call, qop.FAKE_QUANT):
            self._note(x, result)
        elif to.factors is not None and not isinstance(self.value(call.args[0]), Quantized):
            assert self._current is not None
            self.first_rounding[self._current] = x
        return result

    def with_one_scale(self, x: Quantized, call: relax.Call) -> Quantized:
        """Note a tensor that was rounded for another reader too."""
        result = super().with_one_scale(x, call)
        if result is not x:
            self._note(x, result)
        return result

    def scaled(self, layer: Contraction) -> Contraction:
        """Note a layer."""
        assert self._current is not None  # its call is what is converted
        self.layers[self._current] = layer
        return layer

    def sums_of_bytes(self, layer: Contraction) -> tuple[Term, Term]:
        """Note a layer of 16-bit activations."""
        assert self._current is not None
        self.layers[self._current] = layer
        return super().sums_of_bytes(layer)

    def finish(
        self, layer: Contraction, region: Accumulator, to: Quantized, name: str
    ) -> tuple[relax.Expr, Multipliers, Any]:
        """Note the bias of a layer with slopes, which enters the sum whose sign decides."""
        if region.slopes is not None and not isinstance(to.format, Binary):
            step, bias = region.terms[0].scale.reshape(-1), region.bias.reshape(-1)
            steps = bias / np.where(step == 0.0, 1.0, step)
            moves = (np.rint(steps) - steps) * layer.x.scale * layer.weight.scale
            self.bias_moves[layer.call.args[1]] = np.where(step == 0.0, 0.0, moves)
        return super().finish(layer, region, to, name)

    def _note(self, x: Quantized, to: Quantized) -> None:
        assert self._current is not None
        self._rounded_for[self._current, x.expr] = to
