"""Dimensions with a symbolic batch: what is exact is computed, what is not is rejected."""

import numpy as np
import pytest

from tvmquant.frontend.dimensions import (
    Batch,
    UnsupportedNodeError,
    as_array,
    broadcast_shapes,
    concrete,
    count,
    is_symbolic,
    resolve_reshape,
    same_windows,
    show,
)

N = Batch()


def test_products_and_quotients():
    assert N * 4 == 4 * N == Batch(4)
    assert Batch(12) // 4 == Batch(3)
    assert Batch(12) // N == 12
    assert Batch(2) == N * 2.0
    assert N + 0 == 0 + N == N - 0 == N


@pytest.mark.parametrize(
    "operation",
    [
        lambda: N + 1,
        lambda: N + N,
        lambda: N * N,
        lambda: N * 0.5,
        lambda: N * 0,
        lambda: N // 2,
        lambda: 8 // N,
        lambda: N % 2,
        lambda: -N,
        lambda: int(N),
        lambda: N < 3,
        lambda: bool(N),
    ],
)
def test_what_is_no_multiple_of_the_batch_is_rejected(operation):
    with pytest.raises(UnsupportedNodeError):
        operation()


def test_arrays_are_symbolic_only_where_needed():
    assert is_symbolic(as_array([N, 3]))
    assert not is_symbolic(as_array([2, 3]))
    assert as_array([2, 3]).dtype == np.int64
    assert concrete(np.array([1.5, 2], object)).dtype == np.float32
    assert concrete(np.array([True], object)).dtype == bool
    assert not is_symbolic(None)


RESHAPES = [
    ((N, 3, 4), (0, -1), (N, 12)),
    ((N, 3, 4), (-1, 12), (N, 12)),
    ((N, 3, 4), (-1, 4), (Batch(3), 4)),
    ((Batch(3), 4), (N, -1), (N, 12)),
    ((N, 3, 4), (N, 4, 3), (N, 4, 3)),
    ((2, 6), (3, -1), (3, 4)),
]


@pytest.mark.parametrize(("shape", "target", "expected"), RESHAPES)
def test_reshape(shape, target, expected):
    assert resolve_reshape(shape, target) == expected


@pytest.mark.parametrize(
    ("shape", "target"), [((N, 3), (0, 4)), ((N, 3), (-1, 2)), ((2, 3), (N, -1)), ((6,), (2, 0))]
)
def test_impossible_reshapes(shape, target):
    with pytest.raises(UnsupportedNodeError):
        resolve_reshape(shape, target)


def test_broadcast():
    assert broadcast_shapes((N, 3, 1), (4,), (1, 1, 1)) == (N, 3, 4)
    with pytest.raises(UnsupportedNodeError, match=r"\(N, 3\) and \(2, 3\)"):
        broadcast_shapes((N, 3), (2, 3))


def test_count_and_show():
    assert count((N, 3, 4)) == Batch(12)
    assert count(()) == 1
    assert show((N, Batch(2), 3)) == "(N, 2*N, 3)"


@pytest.mark.parametrize("size", range(1, 12))
def test_same_windows(size):
    for kernel in (1, 2, 3, 5):
        for stride in (1, 2, 3):
            padding = same_windows(size, kernel, stride, 1)
            assert (size + padding - kernel) // stride + 1 == -(-size // stride) or padding == 0
