"""What the library decides beyond the annotated graph is in the file: scales, roundings, inputs."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.tvmquant.export.graphs import checked, compared, initialisers, nodes_of
from tvmquant.bit_choice import BitChoice
from tvmquant.export import to_onnx
from tvmquant.export.comparison import compare
from tvmquant.frontend import load_onnx
from tvmquant.quantization import apply_calibration, calibrate

RNG = np.random.default_rng(0)
node = helper.make_node


def network(nodes, shape, constants, dtype="float32", outputs=("y",), **options):
    """Return the annotated graph of a model, and what it was calibrated with."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", kind, ["N", *shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    imported = load_onnx(helper.make_model(graph, opset_imports=opset, ir_version=9))
    if dtype == "float32":
        data = RNG.standard_normal((24, *shape)).astype(np.float32)
    else:
        data = RNG.integers(0, 2 if dtype == "bool" else 100, (24, *shape)).astype(dtype)
    calibration = calibrate(imported, data, batch_size=8)
    return apply_calibration(imported, calibration, **options), data


def weights(*shape):
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def check(graph, data, most_unequal=2, **options):
    """Compare rounding by rounding, and return the model."""
    exported = checked(graph, **options)
    found = compared(exported, data[:4])
    assert found.rounding.largest <= 1
    assert found.rounding.unequal <= most_unequal
    return exported.model


def two_branches(gain):
    """Return a layer that reads two layers of different scales, joined."""
    return network(
        [
            node("Conv", ["x", "a"], ["l"], "left"),
            node("Conv", ["x", "b"], ["r"], "right"),
            node("Concat", ["l", "r"], ["c"], "concat", axis=1),
            node("Conv", ["c", "w", "v"], ["y"], "reader"),
        ],
        (3, 6, 6),
        {
            "a": weights(4, 3, 1, 1),
            "b": gain * weights(5, 3, 1, 1),
            "w": weights(6, 9, 3, 3),
            "v": weights(6),
        },
    )


def test_a_layer_multiplies_integers_of_one_scale():
    """Of joined tensors with scales of their own, the weight has them: its input is divided."""
    graph, data = two_branches(30.0)
    model = check(graph, data)
    (scaled,) = nodes_of(model, "Mul")
    assert scaled.name == "reader/one_scale/Mul"
    reader = next(n for n in model.graph.node if n.name == "reader")
    producer = next(n for n in model.graph.node if reader.input[0] in n.output)
    assert producer.op_type == "DequantizeLinear"
    integers = numpy_helper.to_array(initialisers(model)["reader.weight/integers"])
    assert integers.dtype == np.int8


def test_joined_integers_of_one_scale_are_quantized_again():
    """A runtime joins integers where it finds such a pair behind the concat."""
    graph, data = network(
        [
            node("Conv", ["x", "a"], ["l"], "left"),
            node("Concat", ["l", "l"], ["c"], "concat", axis=1),
            node("Conv", ["c", "w"], ["y"], "reader"),
        ],
        (3, 6, 6),
        {"a": weights(4, 3, 1, 1), "w": weights(6, 8, 3, 3)},
    )
    model = check(graph, data)
    assert not nodes_of(model, "Mul")
    names = [n.name for n in nodes_of(model, "QuantizeLinear")]
    assert "concat/joined/QuantizeLinear" in names


def test_residuals_are_rounded_once():
    graph, data = network(
        [
            node("Conv", ["x", "a", "b"], ["l"], "first", pads=[1] * 4),
            node("Relu", ["l"], ["r"], "relu"),
            node("Conv", ["r", "w", "b"], ["s"], "second", pads=[1] * 4),
            node("Add", ["s", "r"], ["t"], "add"),
            node("Relu", ["t"], ["y"], "end"),
        ],
        (3, 6, 6),
        {"a": weights(4, 3, 3, 3), "b": weights(4), "w": weights(4, 4, 3, 3)},
    )
    model = check(graph, data)
    # of the input, of the first layer and of the sum
    assert len(nodes_of(model, "QuantizeLinear")) == 3
    assert [n.name for n in nodes_of(model, "Add")] == ["add"]


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_inputs_of_bytes_are_read_as_they_are(dtype):
    graph, data = network(
        [
            node("Cast", ["x"], ["f"], "cast", to=TensorProto.FLOAT),
            node("Conv", ["f", "w", "b"], ["y"], "stem"),
        ],
        (3, 6, 6),
        {"w": weights(4, 3, 3, 3) / 100, "b": weights(4)},
        dtype,
    )
    model = check(graph, data)
    assert not nodes_of(model, "Cast")
    (read,) = [n for n in nodes_of(model, "DequantizeLinear") if n.input[0] == "x"]
    assert numpy_helper.to_array(initialisers(model)[read.input[1]]) == 1.0


def test_inputs_of_booleans_are_cast():
    graph, data = network(
        [
            node("Cast", ["x"], ["f"], "cast", to=TensorProto.FLOAT),
            node("Conv", ["f", "w"], ["y"], "stem"),
        ],
        (3, 6, 6),
        {"w": weights(4, 3, 3, 3)},
        "bool",
    )
    assert nodes_of(check(graph, data), "Cast")


def test_tables_of_embeddings_are_stored_in_bytes():
    graph, data = network(
        [
            node("Gather", ["table", "x"], ["e"], "embedding"),
            node("MatMul", ["e", "w"], ["y"], "dense"),
        ],
        (5,),
        {"table": weights(100, 8), "w": weights(8, 6)},
        "int64",
    )
    model = check(graph, data)
    stored = numpy_helper.to_array(initialisers(model)["embedding.table/integers"])
    assert (stored.dtype, stored.shape) == (np.uint8, (100, 8))
    assert all(c.data_type != TensorProto.FLOAT or np.prod(c.dims) < 100
               for c in model.graph.initializer)  # fmt: skip


def test_the_bias_of_slopes_is_in_steps_of_the_accumulator():
    """Its sign is decided with it; in few bits such a step is many of the output's 16."""
    graph, data = network(
        [
            node("Conv", ["x", "w", "b"], ["c"], "conv"),
            node("LeakyRelu", ["c"], ["y"], "slope", alpha=0.01),
        ],
        (3, 6, 6),
        {"w": weights(4, 3, 3, 3), "b": weights(4)},
        choices={"conv": BitChoice.parse("w3a4")},
    )
    check(graph, data, most_unequal=40)


def test_functions_without_a_value_give_zero():
    """Of a logarithm, some levels that calibration allows for are below 0."""
    graph, data = network(
        [
            node("Conv", ["x", "w", "b"], ["c"], "conv"),
            node("Abs", ["c"], ["a"], "positive"),
            node("Sub", ["a", "little"], ["d"], "difference"),
            node("Log", ["d"], ["l"], "log"),
            node("Conv", ["l", "v"], ["y"], "reader"),
        ],
        (3, 6, 6),
        {
            "w": weights(4, 3, 1, 1),
            "b": np.full(4, 9.0, np.float32),
            "little": np.float32(1.0),
            "v": weights(4, 4, 1, 1),
        },
    )
    assert nodes_of(check(graph, data), "IsNaN")


def test_a_constant_that_pads_is_one_of_the_integers():
    graph, data = network(
        [
            node("Conv", ["x", "w"], ["c"], "conv"),
            node("Pad", ["c", "pads", "value"], ["p"], "pad"),
            node("Conv", ["p", "v"], ["y"], "reader"),
        ],
        (3, 6, 6),
        {
            "w": weights(4, 3, 1, 1),
            "v": weights(4, 4, 3, 3),
            "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
            "value": np.float32(0.123),
        },
    )
    check(graph, data)


def test_an_output_that_is_given_twice_or_unchanged_is_copied():
    graph, data = network(
        [
            node("Conv", ["x", "w"], ["y"], "conv"),
            node("Identity", ["y"], ["z"], "same"),
            node("Identity", ["x"], ["u"], "input"),
        ],
        (3, 4, 4),
        {"w": weights(4, 3, 1, 1)},
        outputs=("y", "z", "u"),
    )
    exported = to_onnx(graph)
    onnx.checker.check_model(exported.model, full_check=True)
    found = compare(exported, [(data[:1],)])
    assert list(found.outputs) == ["y", "z", "u"]
    assert all(output.noise == 0.0 for output in found.outputs.values())


@pytest.mark.parametrize(
    ("kind", "gates", "attributes"),
    [
        ("LSTM", 4, {"direction": "reverse"}),
        ("LSTM", 4, {"direction": "bidirectional"}),
        ("GRU", 3, {}),
        ("GRU", 3, {"linear_before_reset": 1}),
        ("RNN", 1, {"activations": ["Relu"]}),
    ],
)
def test_recurrent_layers(kind, gates, attributes):
    """The projection is a layer of integers, the recurrence is ONNX's operator."""
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    outputs = ["s", "h", "c"] if kind == "LSTM" else ["s", "h"]
    graph, data = network(
        [
            node("Transpose", ["x"], ["t"], "steps_first", perm=[1, 0, 2]),
            node(kind, ["t", "w", "r", "b"], outputs, "layer", hidden_size=5, **attributes),
        ],
        (4, 3),
        {
            "w": weights(directions, gates * 5, 3),
            "r": weights(directions, gates * 5, 5),
            "b": weights(directions, 2 * gates * 5),
        },
        outputs=outputs,
    )
    exported = checked(graph)
    found = compared(exported, data[:3])
    # float in between: exp and tanh of two implementations
    assert found.rounding.largest <= 2
    assert all(output.sqnr_db > 60 for output in found.outputs.values())
    assert len(nodes_of(exported.model, kind)) >= directions
