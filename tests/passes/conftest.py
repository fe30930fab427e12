"""Building small graphs, and running them at every level."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from tvm import relax
from tvm.ir import SourceName, Span

from tvmquant.passes import quantized_ops as qop
from tvmquant.passes.annotate_quantization import AnnotateQuantization
from tvmquant.passes.apply_calibration import ApplyCalibration
from tvmquant.passes.canonicalize_ops import CanonicalizeOps
from tvmquant.passes.convert_layout import ConvertLayout
from tvmquant.passes.fold_batch_norm import FoldBatchNorm
from tvmquant.passes.fuse_epilogue import FuseEpilogue
from tvmquant.passes.insert_requantize import InsertRequantize
from tvmquant.passes.rewriter import DataflowRewriter, bindings_of
from tvmquant.simulator import simulate
from tvmquant.twin import Twin

Emit = Callable[..., relax.Var]


def _graph(body: Callable[..., Any], *shapes: Sequence[Any], dtype: str = "float32") -> Any:
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


def _run_twin(module: tvm.IRModule, inputs: Sequence[Any], **options: Any) -> list[Any]:
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


def _quantize(module: tvm.IRModule, inputs: Sequence[Any], **options: Any) -> Levels:
    float_ = FoldBatchNorm()(CanonicalizeOps()(module))
    annotated = AnnotateQuantization(**options)(float_)
    ranges: dict[str, tuple[float, float]] = {}

    def observe(name: str, tensor: torch.Tensor) -> None:
        ranges[name] = (float(tensor.min()), float(tensor.max()))

    twin = Twin(annotated, observe=observe)
    with torch.no_grad():
        twin(*(torch.from_numpy(x) for x in inputs))
    for edge in twin.edges:
        if edge.group:
            members = [ranges[e.id] for e in twin.edges if e.group == edge.group]
            ranges[edge.id] = (min(m[0] for m in members), max(m[1] for m in members))
    calibrated = ApplyCalibration(ranges)(annotated)
    return Levels(float_, annotated, calibrated, InsertRequantize()(calibrated))


class _FixScales(DataflowRewriter):
    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if not qop.is_call(value, qop.FAKE_QUANT):
            return None
        attrs = qop.attributes(value) | {"fixed": 1}
        return qop.emit(qop.FAKE_QUANT, [self.lookup(a) for a in value.args], attrs, value.span)


def _distance(got: Sequence[Any], want: Sequence[Any]) -> float:
    """Return the largest difference in steps of 8 bits over the range of an output."""
    steps = [max(float(np.ptp(w)) / 255, 1e-6) for w in want]
    assert [g.shape for g in got] == [w.shape for w in want]
    return max(float(np.abs(g - w).max()) / s for g, w, s in zip(got, want, steps, strict=True))


def _check(
    module: tvm.IRModule, *inputs: Any, steps: float = 1.5, exact: bool = True, **options: Any
) -> Levels:
    levels = _quantize(module, inputs, **options)
    expected = _run_twin(levels.calibrated, inputs, mode="quantized")
    fixed = InsertRequantize()(_FixScales(levels.calibrated).rewrite())
    assert _distance(simulate(fixed, *inputs), expected) <= steps
    actual = simulate(levels.integer, *inputs)
    assert _distance(actual, expected) <= 4 * steps
    fused = FuseEpilogue()(levels.integer)
    for graph in (fused, ConvertLayout()(fused), ConvertLayout()(levels.integer)):
        relax.analysis.well_formed(graph)
        for want, got in zip(actual, simulate(graph, *inputs), strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=0 if exact else 1e-4)
    return levels


@pytest.fixture
def graph() -> Callable[..., tvm.IRModule]:
    """Return ``graph(body, *shapes)``: main(x0, ...) with what ``body(emit, x0, ...)`` returns."""
    return _graph


@pytest.fixture
def floats() -> Callable[..., list[Any]]:
    """Return ``floats(module, *inputs)``: the outputs of a float graph."""
    return lambda module, *inputs: _run_twin(module, inputs)


@pytest.fixture
def quantize() -> Callable[..., Levels]:
    """Return ``quantize(module, inputs, **annotation)``: all levels, ranges by min and max."""
    return _quantize


@pytest.fixture
def check() -> Callable[..., Levels]:
    """Return ``check(module, *inputs)``, which compares L2 and what follows with L1.

    With the weights of L1, the integer result is within ``steps`` steps of 8 bits of the
    fake-quantized one; with weight scales that grew (other weights, in effect), within four times
    that. Epilogue fusion and layout conversion change no bit, ``exact`` being False where a float
    sum may change its order.
    """
    return _check


@pytest.fixture
def op_names() -> Callable[[tvm.IRModule], list[str]]:
    """Return ``op_names(module)``: the operators of main in order, without their prefixes."""
    return lambda module: [
        str(v.op.name).removeprefix("relax.").removeprefix("tvmquant.")
        for _, v in bindings_of(module["main"])
        if isinstance(v, relax.Call)
    ]
