import numpy as np
import pytest
from tvm import relax

X = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 5)).astype(np.uint8)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda b, x: relax.op.reshape(x, [x.ty.shape[0], -1]), X.reshape(2, -1)),
        (lambda b, x: relax.op.reshape(x, [x.ty.shape[0] * 4, 30]), X.reshape(8, 30)),
        (lambda b, x: relax.op.nn.batch_flatten(x), X.reshape(2, -1)),
        (lambda b, x: relax.op.permute_dims(x, [0, 2, 3, 1]), X.transpose(0, 2, 3, 1)),
        (lambda b, x: relax.op.concat([x, x], 1), np.concatenate([X, X], 1)),
        (lambda b, x: relax.op.expand_dims(x, [1, 5]), X[:, None, :, :, :, None]),
        (lambda b, x: relax.op.squeeze(relax.op.max(x, [2], True), [2]), X.max(2)),
        (lambda b, x: relax.op.take(x, relax.const([3, 1], "int64"), 1), X[:, [3, 1]]),
        (lambda b, x: relax.op.strided_slice(x, [1, 3], [1, -4], [2**31, -1]), X[:, 1:, :, 1:4]),
        (lambda b, x: relax.op.strided_slice(x, [2], [5], [-100], [-2]), X[:, :, ::-2]),
        (lambda b, x: b.emit(relax.op.split(x, 2, 1))[1], X[:, 2:]),
        (lambda b, x: b.emit(relax.op.split(x, [1, 3], 2))[1], X[:, :, 1:3]),
        (lambda b, x: relax.op.max(x, [2, 3], keepdims=True), X.max((2, 3), keepdims=True)),
        (
            lambda b, x: relax.op.nn.pad(x, [0, 0, 0, 0, 1, 2, 0, 3], pad_value=9),
            np.pad(X, ((0, 0), (0, 0), (1, 2), (0, 3)), constant_values=9),
        ),
    ],
)
def test_values_are_moved(run_graph, make, expected):
    def bound(builder, x):
        result = make(builder, x)
        if isinstance(result, relax.Call):
            result = relax.Call(
                result.op,
                [builder.emit(a) if isinstance(a, relax.Call) else a for a in result.args],
                result.attrs,
            )
        return result

    (result,) = run_graph(bound, X)
    np.testing.assert_array_equal(result, expected)


def slow_max_pool(x, kernel, strides, padding, dilation, ceil_mode):
    """Take the maximum over the positions of each window that lie inside."""
    extents = []
    for i in range(2):
        span = x.shape[2 + i] + padding[i] + padding[2 + i] - dilation[i] * (kernel[i] - 1) - 1
        count = (span + (strides[i] - 1 if ceil_mode else 0)) // strides[i] + 1
        starts_beyond = (count - 1) * strides[i] >= x.shape[2 + i] + padding[i]
        extents.append(count - 1 if ceil_mode and starts_beyond else count)
    result = np.zeros((*x.shape[:2], *extents), x.dtype)
    for n, c, y, z in np.ndindex(*result.shape):
        inside = [
            x[n, c, row, column]
            for row in range(y * strides[0] - padding[0], x.shape[2])[:: dilation[0]][: kernel[0]]
            for column in range(z * strides[1] - padding[1], x.shape[3])[:: dilation[1]][
                : kernel[1]
            ]
            if row >= 0 and column >= 0
        ]
        result[n, c, y, z] = max(inside, default=0)
    return result


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(
    ("kernel", "strides", "padding", "dilation"),
    [
        ((2, 2), (2, 2), (0, 0, 0, 0), (1, 1)),
        ((3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
        ((2, 3), (3, 2), (1, 0, 0, 2), (2, 1)),
        ((1, 1), (2, 3), (0, 0, 0, 0), (1, 1)),
    ],
)
def test_max_pool2d(run_graph, layout, ceil_mode, kernel, strides, padding, dilation):
    to, back = ((0, 1, 2, 3),) * 2 if layout == "NCHW" else ((0, 2, 3, 1), (0, 3, 1, 2))
    (result,) = run_graph(
        lambda _, x: relax.op.nn.max_pool2d(
            x, kernel, strides, padding, dilation, ceil_mode, layout=layout
        ),
        X.transpose(to),
    )
    expected = slow_max_pool(X, kernel, strides, padding, dilation, ceil_mode)
    np.testing.assert_array_equal(result.transpose(back), expected)


def test_max_pool2d_pads_floats_with_the_least_value(run_graph):
    x = -np.ones((1, 1, 2, 2), np.float32)
    (result,) = run_graph(lambda _, x: relax.op.nn.max_pool2d(x, (2, 2), (1, 1), (1, 1, 1, 1)), x)
    np.testing.assert_array_equal(result, -np.ones((1, 1, 3, 3), np.float32))


@pytest.mark.parametrize(
    ("mode", "expected"), [("reflect", "reflect"), ("replicate", "edge"), ("circular", "wrap")]
)
def test_padding_with_own_values(run_graph, mode, expected):
    (found,) = run_graph(lambda _, x: relax.op.nn.pad(x, [0, 0, 0, 0, 1, 2, 0, 1], mode), X)
    np.testing.assert_array_equal(found, np.pad(X, ((0, 0), (0, 0), (1, 2), (0, 1)), expected))
