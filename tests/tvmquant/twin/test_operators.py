"""Each torch function against TVM's own execution of the operator."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tvm import relax, tirx

from tests.tvmquant.twin.graphs import graph, named, run_in_tvm, to_numpy
from tvmquant.errors import UnsupportedModelError
from tvmquant.twin import Twin

op = relax.op
RNG = np.random.default_rng(0)


def const(*shape: int) -> relax.Expr:
    return relax.const(RNG.uniform(0.1, 1.0, shape).astype(np.float32))


def integers(shape: tuple[int, ...], below: int) -> relax.Expr:
    return relax.const(RNG.integers(0, below, shape), "int64")


SHAPE = (2, 4, 7, 9)
# of rows that are written once
UNEQUAL = relax.const(np.broadcast_to(np.array([5, 2])[:, None], (2, 4, 2, 9)).copy(), "int64")
PER_CHANNEL = [const(4) for _ in range(4)]

CASES: dict[str, Callable[[relax.Var], Any]] = {
    "conv2d": lambda x: op.nn.conv2d(x, const(6, 4, 3, 3), padding=[1, 1, 1, 1]),
    "conv2d asymmetric": lambda x: op.nn.conv2d(
        x, const(6, 4, 3, 2), strides=[2, 1], padding=[0, 2, 1, 0]
    ),
    "conv2d dilated": lambda x: op.nn.conv2d(
        x, const(6, 4, 3, 3), padding=[2, 2, 2, 2], dilation=[2, 2]
    ),
    "conv2d grouped": lambda x: op.nn.conv2d(x, const(6, 2, 3, 3), groups=2),
    "conv2d depthwise": lambda x: op.nn.conv2d(
        x, const(4, 1, 3, 3), groups=4, strides=[2, 2], padding=[0, 0, 1, 1]
    ),
    "conv2d_transpose": lambda x: op.nn.conv2d_transpose(x, const(4, 3, 2, 2), strides=2),
    "conv2d_transpose padded": lambda x: op.nn.conv2d_transpose(
        x, const(4, 3, 3, 3), strides=[2, 3], padding=[1, 0, 2, 1], output_padding=[1, 2]
    ),
    "max_pool2d": lambda x: op.nn.max_pool2d(x, [3, 3], [2, 2], [1, 1, 1, 1]),
    "max_pool2d ceil": lambda x: op.nn.max_pool2d(x, [2, 2], [2, 2], ceil_mode=True),
    "max_pool2d asymmetric": lambda x: op.nn.max_pool2d(x, [3, 3], [2, 2], [0, 0, 1, 1]),
    "avg_pool2d dilated": lambda x: op.nn.avg_pool2d(
        x, [2, 2], padding=[1, 0, 1, 2], dilation=[2, 3], count_include_pad=False
    ),
    "max_pool2d dilated": lambda x: op.nn.max_pool2d(x, [2, 2], [1, 1], dilation=[2, 3]),
    "avg_pool2d": lambda x: op.nn.avg_pool2d(x, [3, 3], [2, 2], [1, 1, 1, 1]),
    "avg_pool2d include": lambda x: op.nn.avg_pool2d(
        x, [3, 3], [1, 1], [1, 1, 1, 1], count_include_pad=True
    ),
    "avg_pool2d asymmetric": lambda x: op.nn.avg_pool2d(x, [3, 2], [2, 2], [0, 1, 2, 0]),
    "avg_pool2d ceil": lambda x: op.nn.avg_pool2d(x, [2, 2], [2, 2], ceil_mode=True),
    "avg_pool2d ceil include": lambda x: op.nn.avg_pool2d(
        x, [3, 4], [3, 3], [1, 1, 1, 1], ceil_mode=True, count_include_pad=True
    ),
    "adaptive_avg_pool2d": lambda x: op.nn.adaptive_avg_pool2d(x, (3, 4)),
    "batch_norm": lambda x: op.nn.batch_norm(x, *PER_CHANNEL, axis=1, training=False)[0],
    "layer_norm": lambda x: op.nn.layer_norm(x, const(7, 9), const(7, 9), [-2, -1]),
    "matmul": lambda x: op.matmul(x, const(9, 3)),
    "add": lambda x: op.add(x, const(1, 4, 1, 1)),
    "subtract": lambda x: op.subtract(const(4, 1, 1), x),
    "multiply": lambda x: op.multiply(x, x),
    "divide": lambda x: op.divide(x, relax.const(3.0)),
    "power": lambda x: op.power(op.abs(x), relax.const(1.5)),
    "maximum": lambda x: op.maximum(x, relax.const(0.25)),
    "minimum": lambda x: op.minimum(x, const(4, 1, 1)),
    "relu": lambda x: op.nn.relu(x),
    "clip": lambda x: op.clip(x, -0.5, 0.75),
    "clip of integers": lambda x: op.clip(x, 0, 1),
    "hard_swish": lambda x: op.multiply(
        x, op.divide(op.clip(op.add(x, relax.const(3.0)), 0, 6), relax.const(6.0))
    ),
    "leakyrelu": lambda x: op.nn.leakyrelu(x, 0.1),
    "prelu": lambda x: op.nn.prelu(x, const(4), 1),
    "silu": lambda x: op.nn.silu(x),
    "gelu": lambda x: op.nn.gelu(x),
    "gelu_tanh": lambda x: op.nn.gelu_tanh(x),
    "sigmoid": lambda x: op.sigmoid(x),
    "tanh": lambda x: op.tanh(x),
    "exp": lambda x: op.exp(x),
    "erf": lambda x: op.erf(x),
    "sqrt": lambda x: op.sqrt(op.square(x)),
    "rsqrt": lambda x: op.rsqrt(op.exp(x)),
    "log": lambda x: op.log(op.exp(x)),
    "negative": lambda x: op.negative(x),
    "floor": lambda x: op.floor(x),
    "ceil": lambda x: op.ceil(x),
    "round": lambda x: op.round(x),
    "sign": lambda x: op.sign(x),
    "sin": lambda x: op.sin(x),
    "cos": lambda x: op.cos(x),
    "softmax": lambda x: op.nn.softmax(x, 1),
    "log_softmax": lambda x: op.nn.log_softmax(x, -1),
    "mean": lambda x: op.mean(x, [2, 3], keepdims=True),
    "sum": lambda x: op.sum(x, [1]),
    "sum of all": lambda x: op.sum(x),
    "max": lambda x: op.max(x, [2, 3], keepdims=True),
    "min": lambda x: op.min(x, [-1]),
    "concat": lambda x: op.concat([x, op.negative(x)], axis=1),
    "split": lambda x: op.split(x, 2, 1)[1],
    "split at": lambda x: op.split(x, [2, 5], -1)[2],
    "strided_slice": lambda x: op.strided_slice(x, [2, 3], [1, 0], [7, 9], [2, 3]),
    "strided_slice to the end": lambda x: op.strided_slice(x, [1], [-2], [2**31 - 1]),
    "strided_slice reversed": lambda x: op.strided_slice(x, [3], [8], [1], [-2]),
    "reshape": lambda x: op.reshape(x, (2, 9, -1)),
    "flatten": lambda x: op.flatten(x),
    "batch_flatten": lambda x: op.nn.batch_flatten(x),
    "broadcast_to": lambda x: op.broadcast_to(op.mean(x, [2], keepdims=True), SHAPE),
    "permute_dims": lambda x: op.permute_dims(x, [0, 2, 3, 1]),
    "permute_dims reversed": lambda x: op.permute_dims(x),
    "squeeze": lambda x: op.squeeze(op.mean(x, [2, 3], keepdims=True), [2, 3]),
    "expand_dims": lambda x: op.expand_dims(x, [-1, 0]),
    "take": lambda x: op.take(x, relax.const(np.array([[3, 0]], np.int64)), axis=1),
    "argmax": lambda x: op.argmax(x, 1),
    "argmin": lambda x: op.argmin(x, -1, keepdims=True),
    "floor_mod": lambda x: op.floor_mod(x, relax.const(0.7)),
    "gather_elements": lambda x: op.gather_elements(x, integers((2, 3, 9, 9), 7), 2),
    "gather_nd": lambda x: op.gather_nd(x, integers((2, 5, 2), 4), 1),
    "scatter_elements": lambda x: op.scatter_elements(x, UNEQUAL, const(2, 4, 2, 9), 2),
    "scatter_elements max": lambda x: op.scatter_elements(
        x, integers((2, 4, 9, 9), 7), const(2, 4, 9, 9), 2, "max"
    ),
    "scatter_nd": lambda x: op.scatter_nd(
        x, relax.const([[1, 2], [0, 3]], "int64"), const(2, 7, 9)
    ),
    "scatter_nd add": lambda x: op.scatter_nd(x, integers((5, 2), 2), const(5, 7, 9), "add"),
    "cumprod": lambda x: op.cumprod(x, 2, "float32"),
    "prod": lambda x: op.prod(x, [1, -1]),
    "flip": lambda x: op.flip(x, 2),
    "isnan": lambda x: op.isnan(op.sqrt(x)),
    "isinf": lambda x: op.isinf(op.divide(x, op.nn.relu(x))),
    "uint16": lambda x: op.greater(op.astype(op.abs(x), "uint16"), op.astype(x, "uint16")),
    "tile": lambda x: op.tile(x, [2, 1, 3]),
    "full": lambda x: op.add(x, op.full((7, 9), relax.const(2.5), "float32")),
    "pad": lambda x: op.nn.pad(x, [0, 0, 1, 0, 2, 1, 0, 3], "constant", 1.5),
    "pad nothing": lambda x: op.nn.pad(x, [0] * 8),
    "pad reflect": lambda x: op.nn.pad(x, [0, 0, 0, 0, 2, 1, 0, 3], "reflect"),
    "astype": lambda x: op.astype(op.astype(op.multiply(x, relax.const(9.0)), "int32"), "float32"),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_tvm(case: str) -> None:
    x = np.random.default_rng(1).normal(0, 1, SHAPE).astype(np.float32)
    module = graph(SHAPE, lambda builder, v: builder.normalize(CASES[case](v)))
    with torch.no_grad():
        result = to_numpy(Twin(module)(torch.from_numpy(x)))
    np.testing.assert_allclose(result, run_in_tvm(module, x), rtol=1e-5, atol=1e-6)


RESIZES = [
    (method, mode, rounding)
    for mode in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel")
    for method, roundings in (
        ("nearest_neighbor", ("round", "round_prefer_floor", "round_prefer_ceil", "floor", "ceil")),
        ("linear", ("round",)),
    )
    for rounding in roundings
]


@pytest.mark.parametrize("size", [(14, 27), (3, 4), (5, 8)], ids=str)
def test_resize_equals_tvm(size: tuple[int, int]) -> None:
    x = np.random.default_rng(1).normal(0, 1, (1, 2, 7, 9)).astype(np.float32)

    def body(_builder: relax.BlockBuilder, v: relax.Var) -> list[relax.Expr]:
        return [
            op.image.resize2d(
                v,
                size,
                layout="NCHW",
                method=method,
                coordinate_transformation_mode=mode,
                rounding_method=rounding,
            )
            for method, mode, rounding in RESIZES
        ]

    module = graph(x.shape, body)
    results = Twin(module)(torch.from_numpy(x))
    for case, found, expected in zip(RESIZES, results, run_in_tvm(module, x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=str(case))


def test_unknown_operator_names_node_when_built() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'/top/TopK_1'.*relax\.sort"):
        Twin(graph(SHAPE, lambda _b, x: named(op.sort(x, 1), "/top/TopK_1")))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: op.nn.conv2d(x, const(6, 9, 3, 3), data_layout="NHWC"), "layout is NHWC"),
        (
            lambda x: op.image.resize2d(x, (3, 3), layout="NCHW", method="cubic"),
            "interpolation is cubic",
        ),
        (lambda x: op.nn.batch_norm(x, *PER_CHANNEL, axis=1, training=True), "inference mode"),
    ],
)
def test_unsupported_attribute_names_node(call: Callable[[relax.Var], Any], message: str) -> None:
    def body(_builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        return named(call(x), "node_7")

    with pytest.raises(UnsupportedModelError, match=f"'node_7'.*{message}"):
        Twin(graph(SHAPE, body))


class TestSymbolicBatch:
    """Functions that read extents take any batch."""

    @pytest.mark.parametrize("batch", [1, 3])
    def test_shapes(self, batch: int) -> None:
        N = tirx.Var("N", "int64")

        def body(builder: relax.BlockBuilder, x: relax.Var) -> list[relax.Expr]:
            pooled = builder.emit(op.mean(x, [2, 3], keepdims=True))
            return [
                op.reshape(x, (N, 36)),
                op.squeeze(pooled),
                op.broadcast_to(pooled, (N, 4, 3, 3)),
                op.add(x, op.broadcast_to(relax.const(1.0), (N, 4, 3, 3))),
                op.strided_slice(x, [0, 1], [0, 1], [N, 3]),
            ]

        results = Twin(graph((N, 4, 3, 3), body))(torch.zeros(batch, 4, 3, 3))
        shapes = [tuple(r.shape) for r in results]
        whole = (batch, 4, 3, 3)
        assert shapes == [(batch, 36), (batch, 4), whole, whole, (batch, 2, 3, 3)]

    def test_two_unknown_extents_in_reshape(self) -> None:
        N, H = tirx.Var("N", "int64"), tirx.Var("H", "int64")
        with pytest.raises(UnsupportedModelError, match="more than one unknown extent"):
            Twin(graph((N, 4, 3, 3), lambda _b, x: op.reshape(x, (N, H, 3))))
