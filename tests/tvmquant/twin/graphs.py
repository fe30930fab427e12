"""Small Relax modules built by hand, and TVM's own execution of them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import SourceName, Span

from tvmquant.ir import quantized_ops as qop


def named(call: relax.Call, name: str) -> relax.Call:
    """Give a call the name of an ONNX node."""
    span = Span(SourceName(name), 0, 0, 0, 0)
    return relax.Call(call.op, list(call.args), call.attrs, call.ty_args, span)


def graph(
    shape: Sequence[Any], body: Callable[[relax.BlockBuilder, relax.Var], Any]
) -> tvm.IRModule:
    """Build ``main(x)``; `body` emits bindings and returns the result or a list of results."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(list(shape), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = body(builder, x)
            if isinstance(result, list):
                out = builder.emit_output(
                    relax.Tuple([builder.emit(r) for r in result])
                )  # fmt: skip
            else:
                out = builder.emit_output(result)
        builder.emit_func_output(out)
    return builder.get()


def run_in_tvm(module: tvm.IRModule, x: np.ndarray) -> Any:
    """Compile for the CPU and run; the result as numpy arrays."""
    executable = relax.build(module, target="llvm")
    result = relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(x))
    return to_numpy(result)


def to_numpy(result: Any) -> Any:
    if hasattr(result, "numpy"):
        return result.numpy()
    return tuple(to_numpy(field) for field in result)


def fake_quant(x: relax.Expr, name: str, **attributes: Any) -> relax.Call:
    """Return a ``fake_quant`` of a tensor, uncalibrated unless a scale is given."""
    scale = np.atleast_1d(np.asarray(attributes.pop("scale", 0.0), np.float32))
    zero_point = np.atleast_1d(np.asarray(attributes.pop("zero_point", 0), np.int32))
    attrs = {
        "id": name,
        "role": "activation",
        "format": "uint8",
        "scheme": "asymmetric",
        "group": "",
        "axis": -1,
        "qmin": 0,
        "qmax": 255,
        "calibrated": int(scale.any()),
        "fixed": 0,
    }
    return qop.emit(
        qop.FAKE_QUANT,
        [x, qop.constant(scale), qop.constant(zero_point)],
        attrs | attributes,
    )


def small_network(*, seed: int = 0, **edges: dict[str, Any]) -> tvm.IRModule:
    """Return conv+bias+relu, two branches concatenated, pooled, dense; annotated.

    Keyword arguments are attributes of the fake_quants called ``input``, ``relu``, ``left``,
    ``right`` and ``logits``; the weights' are uncalibrated.
    """
    rng = np.random.default_rng(seed)

    def weight(*shape: int) -> relax.Expr:
        return relax.const(rng.normal(0, 0.3, shape).astype(np.float32))

    def body(builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        def quantized(value: relax.Expr, name: str) -> relax.Var:
            return builder.emit(fake_quant(value, name, **edges.get(name, {})))

        def conv(value: relax.Expr, name: str, out: int, channels: int) -> relax.Var:
            kernel = weight(out, channels, 3, 3)
            call = named(relax.op.nn.conv2d(value, kernel, padding=[1, 1, 1, 1]), name)
            bias = named(relax.op.add(builder.emit(call), weight(1, out, 1, 1)), name)
            return builder.emit(relax.op.nn.relu(builder.emit(bias)))

        x = quantized(x, "input")
        stem = quantized(conv(x, "stem", 4, 3), "relu")
        left = quantized(conv(stem, "left.conv", 4, 4), "left")
        right = quantized(conv(stem, "right.conv", 2, 4), "right")
        both = builder.emit(relax.op.concat([left, right], 1))
        pooled = builder.emit(relax.op.mean(both, [2, 3], keepdims=True))
        flat = builder.emit(relax.op.reshape(pooled, (x.ty.shape.values[0], 6)))
        dense = builder.emit(named(relax.op.matmul(flat, weight(6, 5)), "dense"))
        return quantized(dense, "logits")

    return graph((tvm.tirx.Var("N", "int64"), 3, 8, 8), body)
