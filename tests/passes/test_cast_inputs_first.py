"""Casts of inputs stand before what moves these."""

import numpy as np
import tvm
from tvm import relax

from tests.passes.graphs import graph, op_names, run_twin
from tvmquant.passes.cast_inputs_first import CastInputsFirst

op = relax.op


def moved_then_cast(emit, x):
    moved = emit(op.strided_slice(emit(op.permute_dims(x, [0, 3, 1, 2])), [1], [0], [2]))
    return emit(op.astype(moved, "float32"))


def cast_then_moved(emit, x):
    moved = emit(op.permute_dims(emit(op.astype(x, "float32")), [0, 3, 1, 2]))
    return emit(op.strided_slice(moved, [1], [0], [2]))


def test_a_cast_moves_to_the_input():
    before = graph(moved_then_cast, (2, 4, 5, 3), dtype="uint8")
    after = CastInputsFirst()(before)
    relax.analysis.well_formed(after)
    tvm.ir.assert_structural_equal(after, graph(cast_then_moved, (2, 4, 5, 3), dtype="uint8"))
    tvm.ir.assert_structural_equal(CastInputsFirst()(after), after)
    pixels = np.arange(120, dtype=np.uint8).reshape(2, 4, 5, 3)
    np.testing.assert_array_equal(run_twin(after, [pixels])[0], run_twin(before, [pixels])[0])


def test_what_is_computed_with_integers_stays():
    def body(emit, x):
        looked_up = emit(op.add(x, x))
        return emit(op.astype(emit(op.reshape(looked_up, (6,))), "float32"))

    module = graph(body, (2, 3), dtype="int32")
    assert op_names(CastInputsFirst()(module)) == ["add", "reshape", "astype"]


def test_another_reader_keeps_the_moved_integers():
    def body(emit, x):
        moved = emit(op.reshape(x, (6,)))
        return emit(op.astype(moved, "float32")), emit(op.astype(moved, "int64"))

    module = CastInputsFirst()(graph(body, (2, 3), dtype="int32"))
    assert sorted(op_names(module)) == ["astype", "astype", "reshape", "reshape"]
