"""Evaluation of shape arithmetic whose values depend on the symbolic batch.

Each function takes a node and its input arrays (some of them object arrays holding `Batch`) and
returns the output array. Arrays without a batch never come here: those nodes are folded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tvmquant.frontend.dimensions import Array, Batch, UnsupportedNodeError, concrete
from tvmquant.frontend.node import Node

_Evaluator = Callable[..., Array]


def evaluate(node: Node, inputs: list[Array | None]) -> Array:
    """Evaluate ``node`` on shape values.

    Raises
    ------
    UnsupportedNodeError
        If the operator, or what it does with the batch, is not known here.
    """
    evaluator = _EVALUATORS.get(node.op_type)
    if evaluator is None:
        raise UnsupportedNodeError("it computes with the batch size, which is symbolic")
    result = evaluator(node, *inputs)
    return concrete(np.asarray(result, dtype=object))


def _gather(node: Node, data: Array, indices: Array) -> Array:
    return np.asarray(np.take(data, indices, axis=node.integer("axis", 0)), dtype=object)


def _concat(node: Node, *parts: Array) -> Array:
    objects = [part.astype(object) for part in parts]
    return np.concatenate(objects, axis=node.integer("axis", 0))


def _slice(
    node: Node,
    data: Array,
    starts: Array | None = None,
    ends: Array | None = None,
    axes: Array | None = None,
    steps: Array | None = None,
) -> Array:
    begin = node.integers("starts") if starts is None else starts.tolist()
    end = node.integers("ends") if ends is None else ends.tolist()
    if data.ndim != 1 or len(begin) != 1:
        raise UnsupportedNodeError("it slices a shape of more than one dimension")
    step = 1 if steps is None else int(steps[0])
    return data[slice(int(begin[0]), int(end[0]), step)]


def _unsqueeze(node: Node, data: Array, axes: Array | None = None) -> Array:
    where = node.integers("axes") if axes is None else axes.ravel().tolist()
    return np.expand_dims(data, tuple(where))


def _squeeze(node: Node, data: Array, axes: Array | None = None) -> Array:
    where = node.integers("axes") if axes is None else axes.ravel().tolist()
    return np.squeeze(data, tuple(where) or None)


def _reshape(node: Node, data: Array, shape: Array) -> Array:
    return data.reshape(shape.tolist())


def _cast(node: Node, data: Array) -> Array:
    floating = node.integer("to", 0) in (1, 10, 11, 16)

    def one(item: Any) -> Any:
        return item if isinstance(item, Batch) else (float(item) if floating else int(item))

    return np.frompyfunc(one, 1, 1)(data)  # type: ignore[no-any-return]


def _div(node: Node, left: Array, right: Array) -> Array:
    floating = any(
        isinstance(item, float | np.floating)
        for array in (left, right)
        for item in array.ravel().tolist()
    )
    if floating:
        return np.true_divide(left.astype(object), right)  # type: ignore[no-any-return]
    return np.floor_divide(left.astype(object), right)  # type: ignore[no-any-return]


def _equal(node: Node, left: Array, right: Array) -> Array:
    def one(a: Any, b: Any) -> bool:
        if isinstance(a, Batch) and isinstance(b, Batch) and a == b:
            return True
        for dim, other in ((a, b), (b, a)):
            if isinstance(dim, Batch):
                if isinstance(other, Batch) or other > 0:
                    raise UnsupportedNodeError("its result depends on the batch size")
                return False
        return bool(a == b)

    return np.frompyfunc(one, 2, 1)(left, right)  # type: ignore[no-any-return]


def _where(node: Node, condition: Array, left: Array, right: Array) -> Array:
    return np.where(condition.astype(bool), left.astype(object), right.astype(object))


def _product(node: Node, data: Array, axes: Array | None = None) -> Array:
    total: Any = 1
    for item in data.ravel().tolist():
        total = total * item
    keep = node.integer("keepdims", 1) == 1
    return np.array([total] if keep else total, dtype=object)


def _round(data: Array, rounding: Callable[[float], int]) -> Array:
    def one(item: Any) -> Any:
        return item if isinstance(item, Batch) else float(rounding(item))

    return np.frompyfunc(one, 1, 1)(data)  # type: ignore[no-any-return]


def _unchanged(node: Node, data: Array) -> Array:
    return data


_EVALUATORS: dict[str, _Evaluator] = {
    "Add": lambda node, a, b: np.add(a.astype(object), b),
    "Cast": _cast,
    "Ceil": lambda node, data: _round(data, math.ceil),
    "Concat": _concat,
    "Div": _div,
    "Equal": _equal,
    "Floor": lambda node, data: _round(data, math.floor),
    "Gather": _gather,
    "Identity": _unchanged,
    "Mul": lambda node, a, b: np.multiply(a.astype(object), b),
    "ReduceProd": _product,
    "Reshape": _reshape,
    "Shape": lambda node, data: np.array(data.shape, dtype=np.int64),
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": lambda node, a, b: np.subtract(a.astype(object), b),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}

SHAPE_OPERATORS = frozenset(_EVALUATORS)
