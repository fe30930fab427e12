"""Float operators that have a kernel of ours in any graph."""

from __future__ import annotations

from tvm import relax

from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.tensor_types import static_shape
from tvmquant.passes.lowering.emitter import Handler, Lowerer
from tvmquant.passes.recurrent import RECURRENT
from tvmquant.schedules import group_norm_f32, recurrent_f32


def _recurrent(lowerer: Lowerer, call: relax.Call) -> relax.Expr:
    a = qop.attributes(call)
    args = [lowerer.lookup(arg) for arg in call.args]
    steps, batch, hidden = static_shape(call)
    spec = recurrent_f32.RecurrentSpec(
        steps, batch, hidden, a["kind"], bool(a["reverse"]), bool(a["reset_first"]),
        a["activation"], a["state"], static_shape(args[3])[0],
    )  # fmt: skip
    kernel = recurrent_f32.kernel(spec, lowerer.machine)
    return lowerer.call(kernel, args, call.ty, call)


def _group_norm(lowerer: Lowerer, call: relax.Call) -> relax.Expr:
    spec = group_norm_f32.GroupNormSpec(
        static_shape(call), int(call.attrs.num_groups), float(call.attrs.epsilon)
    )
    x, gamma, beta = (lowerer.lookup(a) for a in call.args)
    out = relax.TensorType((spec.rows, spec.channels, spec.positions), "float32")
    rows = lowerer.reshaped(x, (spec.rows, spec.channels * spec.positions))
    kernel = group_norm_f32.kernel(spec, lowerer.machine)
    return lowerer.reshaped(
        lowerer.call(kernel, [rows, gamma, beta], out, call), static_shape(call)
    )


HANDLERS: dict[str, Handler] = {
    "relax.nn.group_norm": _group_norm,
    RECURRENT: _recurrent,
}
