"""Constants and slopes of channels are applied to the parts of concatenations."""

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.graphs import const, graph, normal, run_twin
from tvmquant.passes.apply_before_concat import ApplyBeforeConcat

op = relax.op
SHAPE = (2, 3, 4, 4)
BIAS, SLOPES = normal(1, 8, 1, 1, seed=1), np.abs(normal(8, seed=2))


def parts(emit, x):
    """Return a layer of 5 channels and a sum of 3."""
    return [
        emit(op.nn.conv2d(x, const(normal(5, 3, 3, 3)), padding=1)),
        emit(op.add(x, emit(op.abs(x)))),
    ]


def activation(emit, x, bias, slopes):
    y = emit(op.subtract(x, const(bias)))
    y = emit(op.nn.prelu(y, const(slopes), 1))
    return emit(op.multiply(y, const(2.0)))


def before(emit, x):
    return activation(emit, emit(op.concat(parts(emit, x), 1)), BIAS, SLOPES)


def after(emit, x):
    cuts = [slice(0, 5), slice(5, 8)]
    ends = [
        activation(emit, part, BIAS[:, cut], SLOPES[cut])
        for part, cut in zip(parts(emit, x), cuts, strict=True)
    ]
    return emit(op.concat(ends, 1))


def test_parts_get_their_constants():
    module = graph(before, SHAPE)
    found = ApplyBeforeConcat()(module)
    tvm.ir.assert_structural_equal(found, graph(after, SHAPE))
    tvm.ir.assert_structural_equal(ApplyBeforeConcat()(found), found)
    relax.analysis.well_formed(found)  # raises
    x = normal(*SHAPE)
    np.testing.assert_array_equal(run_twin(found, [x])[0], run_twin(module, [x])[0])


def read_twice(emit, x):
    joined = emit(op.concat(parts(emit, x), 1))
    return relax.Tuple([joined, emit(op.subtract(joined, const(BIAS)))])


def part_read_twice(emit, x):
    layer, total = parts(emit, x)
    joined = emit(op.concat([layer, total], 1))
    return relax.Tuple([total, emit(op.subtract(joined, const(BIAS)))])


def of_inputs(emit, x):
    joined = emit(op.concat([x, emit(op.nn.relu(x))], 1))
    return emit(op.subtract(joined, const(BIAS[:, :6])))


def along_another_axis(emit, x):
    joined = emit(op.concat([emit(op.add(x, x)), emit(op.subtract(x, const(1.0)))], 2))
    return emit(op.nn.prelu(joined, const(SLOPES[:3]), 1))


@pytest.mark.parametrize("body", [read_twice, part_read_twice, of_inputs, along_another_axis])
def test_others_stay(body):
    module = graph(body, SHAPE)
    tvm.ir.assert_structural_equal(ApplyBeforeConcat()(module), module)
