"""Take large constants out of the virtual machine's executable, into the library itself (L3).

Before::

    lv = call_tir(conv2d_3x3, (x, weight, bias, ...))

After, ``weight`` being the third of those that the module's attribute ``tvmquant.weights`` lists::

    w = call_pure_packed("tvmquant_weight", 2)
    lv = call_tir(conv2d_3x3, (x, w, bias, ...))

TVM copies an executable's constants twice while it loads it, and once to keep. What the library
holds as data is read where the system maps it, by all processes that load it.
"""

from __future__ import annotations

import tvm
from tvm import relax

from tvmquant.ir import quantized_ops as qop

FUNCTION = "tvmquant_weight"
WEIGHTS = "tvmquant.weights"

# Calling the function takes longer than reading a register, about 0.1 microseconds, so small ones
# stay where they are.
LEAST_BYTES = 4096


@relax.expr_functor.mutator
class _Storer(relax.PyExprMutator):  # type: ignore[misc]  # TVM's classes are untyped
    """Rewrites functions, and gathers the constants that they share."""

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.weights: list[tvm.runtime.Tensor] = []
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
        if array is None or array.dtype.kind not in "iuf" or array.nbytes < LEAST_BYTES:
            return self.visit_expr(operand)
        key = (array.shape, array.dtype.str, array.tobytes())
        if key not in self.indices:
            self.indices[key] = len(self.weights)
            self.weights.append(operand.value)
        index = tvm.tirx.IntImm("int64", self.indices[key])
        return self.builder_.emit(relax.op.call_pure_packed(FUNCTION, index, ty_args=operand.ty))


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
