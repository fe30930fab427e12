"""Networks that are fed integers and convert them themselves, from an ONNX file to a library."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.passes.graphs import calls, op_names
from tests.tvmquant.networks import check_library, compile_network, float_outputs, sqnr_db
from tvmquant.benchmark import random_inputs
from tvmquant.bit_choice import W4A4, W4A8, BitChoice
from tvmquant.deploy.loader import load
from tvmquant.errors import DataError
from tvmquant.ir import quantized_ops as qop
from tvmquant.layers import quantizable_layers
from tvmquant.simulator import simulate

RNG = np.random.default_rng(0)
MEAN = np.array([123.7, 116.3, 103.5], np.float32).reshape(1, 3, 1, 1)
FACTOR = (1 / np.array([58.4, 57.1, 57.4], np.float32)).reshape(1, 3, 1, 1)
LEVELS = {"uint8": (0, 256), "int8": (-128, 128), "bool": (0, 2), "int32": (0, 256)}


def write(path, nodes, dtype, shape, constants):
    """Write a model from ``x`` to ``y``."""
    graph = helper.make_graph(
        nodes,
        "integers",
        [helper.make_tensor_value_info("x", dtype_of(dtype), ["N", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def dtype_of(name):
    return helper.np_dtype_to_tensor_dtype(np.dtype(name))


def weights(*shape):
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def image_network(path, dtype, *, transpose_first=True, mean=MEAN, size=8):
    """Images, channels last; moved, cast (in either order) and normalized in the model."""
    node = helper.make_node
    move = {"name": "move", "perm": [0, 3, 1, 2]}
    cast = {"name": "cast", "to": TensorProto.FLOAT}
    if transpose_first:
        nodes = [node("Transpose", ["x"], ["a"], **move), node("Cast", ["a"], ["b"], **cast)]
    else:
        nodes = [node("Cast", ["x"], ["a"], **cast), node("Transpose", ["a"], ["b"], **move)]
    nodes += [
        node("Sub", ["b", "mean"], ["c"], "shift"),
        node("Mul", ["c", "factor"], ["d"], "scale"),
        node("Conv", ["d", "w0"], ["e"], "stem", pads=[1] * 4),
        node("Relu", ["e"], ["f"], "relu"),
        node("Conv", ["f", "w1"], ["y"], "head"),
    ]
    constants = {
        "mean": mean,
        "factor": FACTOR,
        "w0": weights(8, 3, 3, 3),
        "w1": weights(4, 8, 1, 1),
    }
    return write(path, nodes, dtype, (size, size, 3), constants)


def images_of(dtype, count=8, size=8):
    return RNG.integers(*LEVELS[dtype], (count, size, size, 3)).astype(dtype)


@pytest.mark.parametrize("transpose_first", [True, False])
def test_images_of_bytes_are_integers_from_the_first(tmp_path, transpose_first):
    images = images_of("uint8")
    path = image_network(tmp_path / "net.onnx", "uint8", transpose_first=transpose_first)
    network = compile_network(path, images)
    assert network.graph.inputs == [("x", (None, 8, 8, 3), "uint8")]
    manifest = check_library(network, tmp_path / "library")
    assert manifest.float_audit == []
    assert op_names(network.quantized.module)[:2] == ["requantize", "qconv2d"]  # no quantize
    (info,) = manifest.inputs
    assert (info.dtype, info.raw_dtype, info.scale, info.zero_point) == ("uint8", "uint8", 1.0, 0)
    (expected,) = onnxruntime.InferenceSession(path).run(None, {"x": images})
    np.testing.assert_allclose(float_outputs(network)[0], expected, rtol=1e-4, atol=1e-4)
    assert sqnr_db(expected, simulate(network.quantized, images)[0]) > 38
    with pytest.raises(DataError, match=r"input 'x' is float32 .* expected uint8"):
        load(tmp_path / "library")(images[:1].astype(np.float32))


def test_a_factor_alone_becomes_part_of_the_weights(tmp_path):
    """Bytes then meet the weights as they are, padding included."""
    images = images_of("uint8")
    path = image_network(tmp_path / "net.onnx", "uint8", mean=np.zeros_like(MEAN))
    network = compile_network(path, images)
    assert op_names(network.quantized.module)[0] == "qconv2d"
    assert sqnr_db(float_outputs(network)[0], simulate(network.quantized, images)[0]) > 38


@pytest.mark.parametrize("read", [False, True])
def test_a_pad_may_put_numbers_beside_bytes_that_no_byte_is(tmp_path, read):
    node = helper.make_node
    nodes = [
        node("Cast", ["x"], ["a"], to=TensorProto.FLOAT),
        node("Pad", ["a", "pads", "value"], ["b" if read else "y"]),
        *([node("Conv", ["b", "w"], ["y"])] if read else []),
    ]
    constants = {"pads": np.array([0, 0, 1, 2, 0, 0, 1, 0]), "value": np.float32(-400)}
    constants |= {"w": weights(4, 3, 3, 3)} if read else {}
    path = write(tmp_path / "net.onnx", nodes, "uint8", (3, 8, 8), constants)
    images = RNG.integers(0, 256, (8, 3, 8, 8)).astype(np.uint8)
    network = compile_network(path, images)
    assert sqnr_db(float_outputs(network)[0], simulate(network.quantized, images)[0]) > 35
    check_library(network, tmp_path / "library")


@pytest.mark.parametrize(
    ("dtype", "first"),
    [("int8", "requantize"), ("bool", "astype"), ("int32", "astype")],
)
def test_other_integers(tmp_path, dtype, first):
    images = images_of(dtype)
    network = compile_network(image_network(tmp_path / "net.onnx", dtype), images)
    names = op_names(network.quantized.module)
    assert next(n for n in names if n not in ("permute_dims", "reshape")) == first
    # of more than 8 bits the range must be measured: they are quantized as floats are
    assert len(calls(network.quantized.module, qop.QUANTIZE)) == (dtype == "int32")
    assert sqnr_db(float_outputs(network)[0], simulate(network.quantized, images)[0]) > 38
    check_library(network, tmp_path / "library")


def test_no_layer_narrows_the_integers_that_it_is_fed(tmp_path):
    network = compile_network(image_network(tmp_path / "a.onnx", "uint8", mean=np.zeros_like(MEAN)),
                              images_of("uint8"))  # fmt: skip
    stem, head = quantizable_layers(network.graph)
    assert (stem.position, head.position) == ("first", "last")
    assert not stem.allows(BitChoice.parse("w8a7"))
    assert stem.allows(W4A8)
    assert stem.allows(BitChoice.parse("w2a8"))
    assert head.allows(W4A4)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_tokens_look_up_integers(tmp_path, dtype):
    """An embedding is quantized when it is compiled; a mask of its own is 0 and 1."""
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "x"], ["a"], "embedding"),
        node("Equal", ["x", "padding"], ["b"], "is_padding"),
        node("Not", ["b"], ["c"], "is_word"),
        node("Cast", ["c"], ["d"], "mask", to=TensorProto.FLOAT),
        node("Unsqueeze", ["d", "last"], ["e"], "unsqueeze"),
        node("Mul", ["a", "e"], ["f"], "masked"),
        node("MatMul", ["f", "w"], ["y"], "dense"),
    ]
    constants = {
        "table": weights(50, 16), "w": weights(16, 6), "padding": np.array(3, dtype),
        "last": np.array([-1], np.int64),
    }  # fmt: skip
    path = write(tmp_path / "net.onnx", nodes, dtype, (12,), constants)
    tokens = RNG.integers(0, 50, (8, 12)).astype(dtype)
    tokens[0, :2] = -1, 3  # the last row of the table, and padding
    network = compile_network(path, tokens)
    manifest = check_library(network, tmp_path / "library")
    assert manifest.float_audit == []
    assert calls(network.quantized.module, qop.QUANTIZE) == []
    assert manifest.inputs[0].raw_dtype == dtype
    (expected,) = onnxruntime.InferenceSession(path).run(None, {"x": tokens})
    np.testing.assert_allclose(float_outputs(network)[0], expected, rtol=1e-4, atol=1e-5)
    assert sqnr_db(expected, simulate(network.quantized, tokens)[0]) > 35
    # a token that no table has reads another row, and nothing outside of the table
    assert np.isfinite(load(tmp_path / "library")(np.full((1, 12), 1 << 30, dtype))).all()


def test_random_inputs_are_of_the_inputs_types(tmp_path):
    network = compile_network(image_network(tmp_path / "net.onnx", "uint8"), images_of("uint8"))
    check_library(network, tmp_path / "library")
    (drawn,) = random_inputs(load(tmp_path / "library").inputs)
    assert drawn.dtype == np.uint8
    assert drawn.min() < 30 < 225 < drawn.max()
