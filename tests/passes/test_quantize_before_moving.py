"""Tensors are rounded to imported scales before they are moved."""

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.graphs import const, graph, normal, run_twin
from tvmquant.ir.imported_quantizers import imported_activation
from tvmquant.passes.quantize_before_moving import QuantizeBeforeMoving

op = relax.op
SHAPE = (2, 3, 4, 4)


def rounded(x, name="q", scale=0.25, ties="even"):
    scales = np.float32([scale])
    return imported_activation(x, scales, 7, "uint8", axis=-1, name=name, ties=ties)


def flat(x):
    return op.reshape(x, (2, 48))


def pad(value):
    return lambda x: op.nn.pad(x, [0, 0, 0, 0, 1, 0, 0, 1], "constant", value)


def layer_before(emit, x):
    y = emit(op.sqrt(emit(op.abs(x))))
    return emit(rounded(emit(op.nn.relu(emit(flat(y))))))


def layer_after(emit, x):
    y = emit(op.sqrt(emit(op.abs(x))))
    return emit(flat(emit(rounded(emit(op.nn.relu(y))))))


def concat_before(emit, x):
    parts = [emit(rounded(x, f"p{scale}", scale)) for scale in (0.1, 0.2)]
    return emit(rounded(emit(pad(1.3)(emit(op.concat(parts, 1))))))


def concat_after(emit, x):
    parts = [emit(rounded(x, f"p{scale}", scale)) for scale in (0.1, 0.2)]
    ends = [emit(rounded(part, name)) for part, name in zip(parts, ("q", "q.1"), strict=True)]
    return emit(pad(1.25)(emit(op.concat(ends, 1))))


@pytest.mark.parametrize(
    ("before", "after"), [(layer_before, layer_after), (concat_before, concat_after)]
)
def test_what_is_moved_is_rounded_before(before, after):
    module = graph(before, SHAPE)
    found = QuantizeBeforeMoving()(module)
    tvm.ir.assert_structural_equal(found, graph(after, SHAPE))
    tvm.ir.assert_structural_equal(QuantizeBeforeMoving()(found), found)
    relax.analysis.well_formed(found)  # raises
    x = 2.0 * normal(*SHAPE)
    np.testing.assert_array_equal(run_twin(found, [x])[0], run_twin(module, [x])[0])


@pytest.mark.parametrize(
    "body",
    [
        lambda emit, x: emit(rounded(emit(flat(x)))),
        lambda emit, x: emit(rounded(emit(flat(emit(rounded(x, "p", 0.1)))))),
        lambda emit, x: emit(rounded(emit(pad(0.0)(emit(rounded(x, "p", 0.1)))))),
        lambda emit, x: emit(rounded(emit(flat(emit(op.abs(x)))), ties="up")),
        lambda emit, x: emit(rounded(emit(op.multiply(emit(op.abs(x)), const(2.0))))),
    ],
    ids=["input", "rounded already", "padded with 0", "own export", "no mover"],
)
def test_what_gains_nothing_stays(body):
    module = graph(body, SHAPE)
    tvm.ir.assert_structural_equal(QuantizeBeforeMoving()(module), module)
