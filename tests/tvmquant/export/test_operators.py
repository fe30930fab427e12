"""Every operator of the annotated graph, written as ONNX, against its torch function."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tvm import relax, tirx

from tests.tvmquant.export.graphs import as_graph, checked, graph_of_several, run
from tests.tvmquant.twin.graphs import graph, named, to_numpy
from tests.tvmquant.twin.test_operators import CASES, RESIZES, SHAPE, const
from tvmquant.errors import UnsupportedModelError
from tvmquant.export.operators import WRITERS
from tvmquant.ir import quantized_ops as qop
from tvmquant.twin import Twin
from tvmquant.twin.operators import OPERATORS

op = relax.op
# Those at which an operator of ONNX changes, or one more begins.
OPSETS = (13, 17, 18, 20, 25)

OTHERS: dict[str, Callable[[relax.Var], Any]] = {
    "group_norm": lambda x: op.nn.group_norm(x, const(4), const(4), 2, 1, [2, 3]),
    "layer_norm of channels": lambda x: op.nn.layer_norm(x, const(4), const(4), [1]),
    "batch_norm of the last axis": lambda x: op.nn.batch_norm(
        x, *[const(9) for _ in range(4)], axis=3, training=False
    )[0],
    "adaptive_avg_pool2d of one": lambda x: op.nn.adaptive_avg_pool2d(x, (1, 1)),
    "adaptive_avg_pool2d of equal windows": lambda x: op.nn.adaptive_avg_pool2d(x, (7, 3)),
    "pad circular": lambda x: op.nn.pad(x, [0, 0, 0, 0, 2, 1, 0, 3], "circular"),
    "pad replicate": lambda x: op.nn.pad(x, [0, 0, 0, 0, 2, 1, 0, 3], "replicate"),
    "clip above": lambda x: op.clip(x, -float("inf"), 0.5),
    "trunc": lambda x: op.trunc(op.multiply(x, relax.const(3.0))),
    "tan": lambda x: op.tan(op.clip(x, -1.0, 1.0)),
    "inverse functions": lambda x: op.add(
        op.asin(op.clip(x, -0.9, 0.9)), op.add(op.acos(op.clip(x, -0.9, 0.9)), op.atan(x))
    ),
    "hyperbolic functions": lambda x: op.add(op.sinh(x), op.cosh(x)),
    "inverse hyperbolic functions": lambda x: op.add(
        op.asinh(x),
        op.add(op.acosh(op.exp(op.abs(x))), op.atanh(op.clip(x, -0.9, 0.9))),
    ),
    "comparisons": lambda x: op.where(
        op.logical_and(
            op.logical_or(op.greater(x, relax.const(0.3)), op.less(x, relax.const(-0.3))),
            op.logical_not(op.logical_xor(op.greater_equal(x, x), op.less_equal(x, x))),
        ),
        x,
        relax.const(0.0),
    ),
    "equal": lambda x: op.astype(op.equal(op.floor(x), relax.const(0.0)), "float32"),
    "min of all": lambda x: op.min(x),
    "argmax of all": lambda x: op.argmax(x, keepdims=True),
    "conv2d with bias": lambda x: op.add(op.nn.conv2d(x, const(6, 4, 3, 3)), const(6, 1, 1)),
    "conv2d with one bias": lambda x: op.add(
        op.nn.conv2d(x, const(6, 4, 3, 3)), relax.const(0.25)
    ),
    "conv2d with a bias of positions": lambda x: op.add(
        op.nn.conv2d(x, const(6, 4, 1, 1)), const(7, 1)
    ),
    "conv2d_transpose with bias": lambda x: op.add(
        op.nn.conv2d_transpose(x, const(4, 3, 2, 2), groups=2), const(1, 6, 1, 1)
    ),
    "gemm": lambda x: op.add(op.matmul(op.mean(x, [2, 3]), const(4, 5)), const(5)),
    "matmul with bias": lambda x: op.add(op.matmul(x, const(9, 3)), const(3)),
    "matmul of two": lambda x: op.matmul(x, op.permute_dims(x, [0, 1, 3, 2])),
}  # fmt: skip
# whose windows differ in size
NOT_IN_ONNX = {"adaptive_avg_pool2d"}
# Refused by name: what computes by indices stays float, and no plan holds it.
NOT_WRITTEN = {
    "relax.cumprod", "relax.cumsum", "relax.floor_mod", "relax.gather_elements", "relax.gather_nd",
    "relax.scatter_elements", "relax.scatter_nd",
}  # fmt: skip


def _is_written(case: str) -> bool:
    return case not in NOT_IN_ONNX and f"relax.{case.split()[0]}" not in NOT_WRITTEN


def _input() -> np.ndarray:
    return np.random.default_rng(1).normal(0, 1, SHAPE).astype(np.float32)


@pytest.mark.parametrize("case", [c for c in CASES | OTHERS if _is_written(c)])
def test_equals_torch_at_every_opset(case: str) -> None:
    x = _input()
    module = graph(SHAPE, lambda builder, v: builder.normalize((CASES | OTHERS)[case](v)))
    with torch.no_grad():
        expected = to_numpy(Twin(module)(torch.from_numpy(x)))
    for opset in OPSETS:
        (found,) = run(checked(as_graph(module), opset=opset), x)
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6, err_msg=f"opset {opset}")


@pytest.mark.parametrize("size", [(14, 27), (3, 4), (5, 8)], ids=str)
@pytest.mark.parametrize("opset", [13, 19])
def test_resizes_equal_torch(size: tuple[int, int], opset: int) -> None:
    x = np.random.default_rng(1).normal(0, 1, (1, 2, 7, 9)).astype(np.float32)

    def body(_builder: relax.BlockBuilder, v: relax.Var) -> list[relax.Expr]:
        return [
            op.image.resize2d(
                v, size, layout="NCHW", method=method, coordinate_transformation_mode=mode,
                rounding_method=rounding,
            )
            for method, mode, rounding in RESIZES
        ]  # fmt: skip

    resized = graph_of_several(x.shape, body)
    expected = Twin(resized.module)(torch.from_numpy(x))
    results = run(checked(resized, opset=opset), x)
    for case, found, wanted in zip(RESIZES, results, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5, err_msg=str(case))


def test_every_operator_of_the_twin_can_be_written() -> None:
    integer = {name for name in OPERATORS if name.startswith(qop.PREFIX)}
    written = OPERATORS.keys() - integer | {qop.QUANTIZE, qop.DEQUANTIZE}
    assert written - NOT_WRITTEN == WRITERS.keys()
    assert written >= NOT_WRITTEN


@pytest.mark.parametrize("batch", [1, 3])
def test_the_batch_stays_open(batch: int) -> None:
    N = tirx.Var("N", "int64")

    def body(builder: relax.BlockBuilder, x: relax.Var) -> list[relax.Expr]:
        pooled = builder.emit(op.mean(x, [2, 3], keepdims=True))
        return [
            op.reshape(x, (N, 36)),
            op.reshape(x, (N * 4, 9)),
            op.broadcast_to(pooled, (N, 4, 3, 3)),
            op.broadcast_to(const(1, 4), (N, 4)),
            op.broadcast_to(const(1, 4), (N * 2, 4)),
            op.strided_slice(x, [0, 1], [0, 1], [N, 3]),
            op.full((N, 2), relax.const(1.5), "float32"),
        ]

    exported = checked(graph_of_several((N, 4, 3, 3), body))
    shapes = [r.shape for r in run(exported, np.zeros((batch, 4, 3, 3), np.float32))]
    assert shapes == [
        (batch, 36), (4 * batch, 9), (batch, 4, 3, 3), (batch, 4), (2 * batch, 4), (batch, 2, 3, 3),
        (batch, 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: op.cumsum(x, 1), r"relax\.cumsum cannot be written as ONNX"),
        (lambda x: op.nn.adaptive_avg_pool2d(x, (3, 4)), "windows of several sizes"),
        (lambda x: op.image.resize2d(x, (3, 3), layout="NCHW", method="cubic"), "by cubic"),
        (
            lambda x: op.nn.batch_norm(x, *[const(4) for _ in range(4)], axis=1, training=True),
            "inference mode",
        ),
        (
            lambda x: op.nn.avg_pool2d(x, [2, 2], dilation=[2, 3], ceil_mode=True),
            "dilated windows that reach beyond",
        ),
    ],
)
def test_what_onnx_has_not_names_the_node(call: Callable[[relax.Var], Any], message: str) -> None:
    module = graph(SHAPE, lambda _builder, x: named(call(x), "node_7"))
    with pytest.raises(UnsupportedModelError, match=f"'node_7'.*{message}"):
        checked(as_graph(module), opset=13)
