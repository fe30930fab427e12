"""Building small graphs, and running them at every level."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tvm
from tvm import relax, tirx
from tvm.ir import SourceName, Span

from tvmquant.formats import Format
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of
from tvmquant.passes.annotate_quantization import AnnotateQuantization
from tvmquant.passes.apply_calibration import ApplyCalibration
from tvmquant.passes.assign_bit_widths import AssignBitWidths
from tvmquant.passes.canonicalize_ops import CanonicalizeOps
from tvmquant.passes.convert_layout import ConvertLayout
from tvmquant.passes.fix_scales import FixScales
from tvmquant.passes.fold_batch_norm import FoldBatchNorm
from tvmquant.passes.fuse_epilogue import FuseEpilogue
from tvmquant.passes.insert_requantize import InsertRequantize
from tvmquant.passes.verify_integer_only import float_audit
from tvmquant.simulator import simulate
from tvmquant.twin import Twin


def graph(body: Callable[..., Any], *shapes: Sequence[Any], dtype: str = "float32") -> Any:
    """Return ``main(x0, ...)`` with the results of ``body(emit, x0, ...)``."""
    builder = relax.BlockBuilder()
    params = [relax.Var(f"x{i}", relax.TensorType(list(s), dtype)) for i, s in enumerate(shapes)]

    def emit(expr: relax.Expr, name: str = "") -> relax.Var:
        if name:
            span = Span(SourceName(name), 0, 0, 0, 0)
            expr = relax.Call(expr.op, expr.args, expr.attrs, expr.ty_args, span)
        return builder.emit(expr)

    with builder.function("main", params):
        with builder.dataflow():
            result = body(emit, *params)
            several = isinstance(result, tuple)
            outputs = [builder.emit_output(r) for r in (result if several else [result])]
        builder.emit_func_output(relax.Tuple(outputs) if several else outputs[0])
    return builder.finalize()


def kernel_graph(
    kernel: tirx.PrimFunc, view: tuple[int, ...], constants: Sequence[Any], *ends: relax.TensorType
) -> tvm.IRModule:
    """Return ``main(x0)`` that calls a kernel on ``x0``, viewed in another shape, and constants.

    ``ends`` are the types of ``x0``, of the kernel's output and of the result, a view of that.
    """
    builder = relax.BlockBuilder()
    x_type, out_type, result_type = ends
    x = relax.Var("x0", x_type)
    with builder.function("main", [x]):
        with builder.dataflow():
            viewed = builder.emit(relax.op.reshape(x, view))
            function = builder.add_func(kernel, str(kernel.attrs["tvmquant.kernel"]))
            args = [viewed, *map(qop.constant, constants)]
            y = builder.emit(relax.op.call_tir(function, args, out_ty=out_type))
            y = builder.emit_output(builder.emit(relax.op.reshape(y, result_type.shape)))
        builder.emit_func_output(y)
    return builder.finalize()


def run_twin(module: tvm.IRModule, inputs: Sequence[Any], **options: Any) -> list[Any]:
    """Return the outputs of a float or annotated graph."""
    with torch.no_grad():
        result = Twin(module, **options)(*(torch.from_numpy(x) for x in inputs))
    return [t.numpy() for t in (result if isinstance(result, tuple) else (result,))]


@dataclass(frozen=True)
class Levels:
    """One network at each level."""

    float_: tvm.IRModule
    annotated: tvm.IRModule
    calibrated: tvm.IRModule
    integer: tvm.IRModule


def quantize(
    module: tvm.IRModule,
    inputs: Sequence[Any],
    weights: dict[str, Format] | None = None,
    activations: dict[str, Format] | None = None,
    scales: FixScales | None = None,
    fold_batch_norm: bool = True,
    **options: Any,
) -> Levels:
    """Take a float graph to L2, with ranges that are the extremes of the inputs given."""
    float_ = CanonicalizeOps()(module)
    if fold_batch_norm:
        float_ = FoldBatchNorm()(float_)
    annotated = AnnotateQuantization(**options)(float_)
    annotated = AssignBitWidths(weights or {}, activations or {})(annotated)
    ranges: dict[str, tuple[float, float]] = {}

    def observe(name: str, tensor: torch.Tensor) -> None:
        ranges[name] = (float(tensor.min()), float(tensor.max()))

    twin = Twin(annotated, observe=observe)
    with torch.no_grad():
        twin(*(torch.from_numpy(x) for x in inputs))
    calibrated = (scales or FixScales())(ApplyCalibration(ranges)(annotated))
    return Levels(float_, annotated, calibrated, InsertRequantize()(calibrated))


def distance(got: Sequence[Any], want: Sequence[Any]) -> float:
    """Return the largest difference in steps of 8 bits over the range of an output."""
    steps = [max(float(np.ptp(w)) / 255, 1e-6) for w in want]
    assert [g.shape for g in got] == [w.shape for w in want]
    return max(float(np.abs(g - w).max()) / s for g, w, s in zip(got, want, steps, strict=True))


def check(
    module: tvm.IRModule, *inputs: Any, steps: float = 1.5, exact: bool = True, **options: Any
) -> Levels:
    """Compare L2 and what follows with L1.

    The integer result is within ``steps`` steps of 8 bits of the fake-quantized one, and, as far as
    no operator is float, that of the exact twin. Epilogue fusion and layout conversion change no
    bit, ``exact`` being False where a float sum may change its order.
    """
    levels = quantize(module, inputs, **options)
    expected = run_twin(levels.calibrated, inputs, mode="quantized")
    actual = simulate(levels.integer, *inputs)
    assert distance(actual, expected) <= steps
    floats = bool(float_audit(levels.integer))
    for want, got in zip(actual, run_twin(levels.calibrated, inputs, mode="exact"), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=0 if exact and not floats else 1e-4)
    fused = FuseEpilogue()(levels.integer)
    for graph in (fused, ConvertLayout()(fused), ConvertLayout()(levels.integer)):
        relax.analysis.well_formed(graph)
        for want, got in zip(actual, simulate(graph, *inputs), strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=0 if exact else 1e-4)
    return levels


def op_names(module: tvm.IRModule) -> list[str]:
    """Return the operators of main in order, without their prefixes."""
    return [
        str(value.op.name).removeprefix("relax.").removeprefix("tvmquant.")
        for _, value in bindings_of(module["main"])
        if isinstance(value, relax.Call)
    ]


def calls(module: tvm.IRModule, name: str) -> list[relax.Call]:
    """Return the calls of one operator of main in order."""
    return [v for _, v in bindings_of(module["main"]) if qop.is_call(v, name)]


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> Any:
    """Return normally distributed float32 numbers."""
    generator = np.random.default_rng([seed, *shape])
    return (generator.standard_normal(shape) * scale).astype(np.float32)


def const(array: Any) -> relax.Expr:
    """Return a float32 constant."""
    return qop.constant(np.asarray(array, np.float32))
