import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.ir import SourceName, Span

from tvmquant import frontend
from tvmquant.errors import DataError, QuantizationError
from tvmquant.ir import quantized_ops as qop
from tvmquant.simulator import simulate
from tvmquant.simulator.interpreter import OPERATORS

REQUANTIZE = {
    "output_zero_point": 0,
    "qmin": 0,
    "qmax": 255,
    "axis": 1,
    "out_dtype": "uint8",
}


def two_layers(builder, x):
    """Return dense, its requantization under the same id, and a named reshape."""
    weight = qop.constant(np.eye(4, dtype=np.int8) * 2)
    bias = qop.constant(np.zeros(4, np.int32))
    acc = builder.emit(qop.emit(qop.QDENSE, [x, weight, bias], {"out_dtype": "int32", "id": "fc"}))
    numbers = [qop.constant(np.array([v])) for v in (1, 1, 0)]
    q = builder.emit(qop.emit(qop.REQUANTIZE, [acc, *numbers], REQUANTIZE | {"id": "fc"}))
    plain = relax.op.reshape(q, [x.ty.shape[0], 2, 2])
    span = Span(SourceName("fold"), 1, 1, 1, 1)
    folded = builder.emit(relax.Call(plain.op, plain.args, plain.attrs, plain.ty_args, span))
    return relax.Tuple([q, folded])


@pytest.fixture
def module(build_graph):
    return build_graph([((4,), "uint8")], two_layers)


@pytest.mark.parametrize("batch", [1, 3])
def test_the_batch_is_bound_from_the_inputs(module, batch):
    x = np.arange(4 * batch, dtype=np.uint8).reshape(batch, 4)
    q, folded = simulate(module, x)
    np.testing.assert_array_equal(q, x)
    np.testing.assert_array_equal(folded, x.reshape(batch, 2, 2))


def test_intermediates_hold_the_last_value_of_every_layer(module):
    x = np.arange(4, dtype=np.uint8).reshape(1, 4)
    outputs, layers = simulate(module, x, intermediates=True)
    assert list(layers) == ["fc", "fold"]
    assert layers["fc"].dtype == np.uint8
    np.testing.assert_array_equal(layers["fold"], outputs[1])


def test_a_graph_object_stands_for_its_module(module):
    x = np.zeros((1, 4), np.uint8)
    np.testing.assert_array_equal(simulate(SimpleNamespace(module=module), x)[0], x)


def test_several_blocks_and_aliases_are_walked():
    x = relax.Var("x", relax.TensorType([2, 2], "uint8"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            y = builder.emit_output(relax.op.permute_dims(x, [1, 0]))
        alias = builder.emit(y)
        with builder.dataflow():
            z = builder.emit_output(relax.op.concat([alias, x], 0))
        builder.emit_func_output(z)
    value = np.array([[1, 2], [3, 4]], np.uint8)
    (result,) = simulate(builder.get(), value)
    np.testing.assert_array_equal(result, [[1, 3], [2, 4], [1, 2], [3, 4]])


def test_the_number_of_inputs_is_checked(module):
    with pytest.raises(DataError, match=r"has 1 inputs \(x0\), got 0 arrays"):
        simulate(module)


@pytest.mark.parametrize(
    "x", [np.zeros((1, 4), np.int8), np.zeros((1, 5), np.uint8), np.zeros(4, np.uint8)]
)
def test_the_inputs_are_checked(module, x):
    with pytest.raises(DataError, match=r"input x0 must be uint8 of shape \(n, 4\), found"):
        simulate(module, x)


def test_one_batch_for_all_inputs(build_graph):
    module = build_graph(
        [((4,), "uint8"), ((4,), "uint8")], lambda _, x, y: relax.op.concat([x, y], 1)
    )
    with pytest.raises(DataError, match="input x1"):
        simulate(module, np.zeros((1, 4), np.uint8), np.zeros((2, 4), np.uint8))


def test_an_operator_outside_the_integer_graph_is_named(build_graph):
    module = build_graph([((4,), "float32")], lambda _, x: relax.op.sort(x, 1))
    with pytest.raises(QuantizationError, match=r"no operator relax\.sort"):
        simulate(module, np.zeros((1, 4), np.float32))


def test_passes_leave_the_result_unchanged(module):
    x = np.arange(4, dtype=np.uint8).reshape(1, 4)
    passes = [relax.transform.ToNonDataflow(), relax.transform.RemovePurityChecking()]
    lowered = tvm.transform.Sequential(passes)(module)
    for before, after in zip(simulate(module, x), simulate(lowered, x), strict=True):
        np.testing.assert_array_equal(before, after)


def test_every_operator_that_an_import_emits_is_known():
    sources = [path.read_text() for path in Path(frontend.__file__).parent.glob("*.py")]
    emitted = {
        f"relax.{name}" for text in sources for name in re.findall(r"relax\.op\.([\w.]+)", text)
    }
    assert len(emitted) > 50
    folded = {"relax.nn.batch_norm"}  # none is left after FoldBatchNorm
    assert emitted - folded <= OPERATORS.keys()
