"""What exporters make of a group normalization becomes one operator again."""

import numpy as np
import pytest
from tvm import relax, tirx

from tests.passes.graphs import calls, const, graph, normal, op_names, run_twin
from tvmquant.passes.fuse_group_norm import FuseGroupNorm

op = relax.op
N = tirx.Var("N", "int64")
SHAPE = (N, 6, 5, 4)
SCALE, SHIFT = normal(6, 1, 1), normal(1, 6, 1, 1)


def group_norm(x, channels, groups, axes=(2,)):
    parameters = const(normal(channels)), const(normal(channels))
    return op.nn.group_norm(x, *parameters, groups, 1, list(axes), 0.01)


def taken_apart(emit, x):
    rows = emit(op.reshape(x, (N, 2, 60)))
    normed = emit(group_norm(rows, 2, 2), "norm")
    scaled = emit(op.multiply(emit(op.reshape(normed, SHAPE)), const(SCALE)))
    return emit(op.add(scaled, const(SHIFT)))


def test_reshapes_and_parameters_become_part_of_it():
    before = graph(taken_apart, SHAPE)
    after = FuseGroupNorm()(before)
    assert op_names(after) == ["nn.group_norm"]
    (call,) = calls(after, "relax.nn.group_norm")
    assert int(call.attrs.num_groups) == 2
    assert call.span.source_name.name == "norm"
    x = normal(3, 6, 5, 4)
    expected = run_twin(before, [x])[0]
    np.testing.assert_allclose(run_twin(after, [x])[0], expected, rtol=1e-5, atol=1e-5)
    assert op_names(FuseGroupNorm()(after)) == ["nn.group_norm"]
    relax.analysis.well_formed(after)


def read_twice(emit, x):
    normed = emit(group_norm(x, 6, 3, (2, 3)))
    return emit(op.multiply(normed, const(SCALE))), normed


UNCHANGED = {
    "read twice": read_twice,
    "by position": lambda emit, x: emit(
        op.multiply(emit(group_norm(x, 6, 3, (2, 3))), const(normal(5, 4)))
    ),
    "of other groups": lambda emit, x: emit(
        op.reshape(emit(group_norm(emit(op.reshape(x, (N, 4, 30))), 4, 2)), SHAPE)
    ),
    "to another shape": lambda emit, x: emit(
        op.reshape(emit(group_norm(emit(op.reshape(x, (N, 2, 60))), 2, 2)), (N, 6, 20))
    ),
}


@pytest.mark.parametrize("case", UNCHANGED)
def test_others_stay_as_they_are(case):
    before = graph(UNCHANGED[case], SHAPE)
    assert op_names(FuseGroupNorm()(before)) == op_names(before)
