"""Which tensors have small values that matter, so that 8 bits over their range are too few."""

from __future__ import annotations

from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of, used_vars

AMPLIFYING = ("relax.sqrt", "relax.rsqrt", "relax.log", "relax.power")
SCALING = ("relax.add", "relax.multiply", "relax.reshape", "relax.nn.relu", "relax.clip",
           "relax.broadcast_to")  # fmt: skip


def amplified(function: relax.Function, divisors: bool = False) -> set[relax.Var]:
    """Return what a root, a logarithm, a power or a reciprocal reads, scaled or shifted or not.

    Parameters
    ----------
    function : relax.Function
    divisors : bool
        Whether what tensors are divided by counts too.
    """
    found: set[relax.Var] = set()
    for var, value in reversed(list(bindings_of(function))):
        read = used_vars(value)
        if qop.is_call(value, *AMPLIFYING):
            found.update(read)
        elif qop.is_call(value, "relax.divide"):
            if divisors or not isinstance(value.args[0], relax.Var):
                found.update(used_vars(value.args[1]))
        elif var in found and (isinstance(value, relax.Var) or qop.is_call(value, *SCALING)):
            found.update(read if len(read) == 1 else ())
    return found
