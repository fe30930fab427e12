"""Which layers round their input by its range, found at run time, and what they give.

The model may ask for it, or whoever quantizes a layer that would otherwise stay float. Its result
is real numbers, as are those with the constants and the clip behind it, which its kernel takes in:
what is rounded of them, if anything, is the end of this.
"""

from __future__ import annotations

import tvm
from tvm import relax

from tvmquant.ir import dynamic_ops as dyn
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of, count_uses, used_vars
from tvmquant.passes.channel_affine import MATMUL
from tvmquant.passes.region_operators import RESHAPES

# what a layer's kernel does to its sums
_FINISHING = ("relax.add", "relax.subtract", "relax.nn.relu", "relax.clip")


class DynamicLayers:
    """What is noted of the calls of a function, in their order.

    Parameters
    ----------
    function : relax.Function
    chosen : bool
        Whether layers that would stay float are dynamic.

    Attributes
    ----------
    ranged : set of relax.Var
        Tensors that the model rounds by their ranges, wherever they have moved.
    layers : set of relax.Var
        Results of dynamic layers.
    """

    def __init__(self, function: relax.Function, *, chosen: bool) -> None:
        self.chosen = chosen
        self.ranged: set[relax.Var] = set()
        self.layers: set[relax.Var] = set()
        self._uses = count_uses(function)
        self._weights = {
            var
            for var, value in bindings_of(function)
            if qop.is_call(value, qop.FAKE_QUANT) and qop.attributes(value)["role"] == qop.WEIGHT
        }
        # of layers, and what finishes them
        self._results: set[relax.Var] = set()

    def takes(self, var: relax.Var, value: relax.Expr) -> bool:
        """Note what the model itself makes dynamic, and whether a value belongs to that."""
        read = used_vars(value)
        from_ranged = bool(read) and read[0] in self.ranged
        if qop.is_call(value, dyn.DYNAMIC_QUANT) or (
            from_ranged and (isinstance(value, relax.Var) or qop.is_call(value, *RESHAPES))
        ):
            self.ranged.add(var)
            return True
        if from_ranged and isinstance(value, relax.Call) and self._is_layer(value):
            self._note(var)
            return True
        finishes = qop.is_call(value, *_FINISHING) and len(read) == 1
        if finishes and read[0] in self._results and self._uses[read[0]] == 1:
            self._results.add(var)
            return True
        return False

    def choose(self, var: relax.Var, call: relax.Call) -> None:
        """Note a layer that no region takes, if such shall be dynamic."""
        if self.chosen and self._is_layer(call):
            self._note(var)

    def _note(self, var: relax.Var) -> None:
        self.layers.add(var)
        self._results.add(var)

    def _is_layer(self, call: relax.Call) -> bool:
        """Whether a call is a layer that multiplies by a weight that is known."""
        if not qop.is_call(call, *qop.FLOAT_CONTRACTIONS):
            return False
        x, weight = call.args[:2]
        plain = not qop.is_call(call, MATMUL) or len(weight.ty.shape.values) == 2
        known = isinstance(weight, tvm.ir.GenericConst) or weight in self._weights
        return plain and known and isinstance(x, relax.Var)
