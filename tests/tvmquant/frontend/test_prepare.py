"""Damaged, foreign and hostile files: each gives one clear ModelError."""

import contextlib

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tvmquant.errors import ModelError
from tvmquant.frontend import load_onnx

IMAGE = {"x": ("N", 3, 6, 4)}


@pytest.fixture
def conv_model(make_model):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        helper.make_node("Relu", ["a"], ["y"], name="relu"),
    ]
    return make_model(nodes, IMAGE, constants={"w": np.ones((4, 3, 3, 3), np.float32)})


def fails(path_or_model, match, **options):
    with pytest.raises(ModelError, match=match) as caught:
        load_onnx(path_or_model, **options)
    return str(caught.value)


def test_missing_file(tmp_path):
    fails(tmp_path / "none.onnx", r"none\.onnx: cannot be read: No such file")


def test_folder_instead_of_a_file(tmp_path):
    fails(tmp_path, "cannot be read: Is a directory")


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"\x89PNG\r\n\x1a\n" + bytes(99)])
def test_not_an_onnx_file(tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    fails(path, r"bad\.onnx: not an ONNX (file|model)")


def test_every_truncation_is_a_model_error(tmp_path, conv_model):
    data = conv_model.SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        fails(path, "cut")


def test_values_that_nothing_defines(make_model):
    node = helper.make_node("Add", ["x", "gone"], ["y"], name="sum")
    fails(make_model([node], IMAGE), "node 'sum' .* reads 'gone', which nothing before it defines")


def test_output_that_nothing_defines(conv_model):
    conv_model.graph.output[0].name = "z"
    fails(conv_model, "nothing defines output 'z'")


def test_value_defined_twice(conv_model):
    conv_model.graph.node[1].output[0] = "a"
    fails(conv_model, "'a' is defined twice")


def test_model_without_inputs(make_model):
    node = helper.make_node("Relu", ["w"], ["y"])
    fails(make_model([node], {}, constants={"w": np.ones(2, np.float32)}), "has no inputs")


def test_model_without_outputs(conv_model):
    del conv_model.graph.output[:]
    fails(conv_model, "has no outputs")


@pytest.mark.parametrize("opset", [6, 99])
def test_opset_out_of_range(conv_model, opset):
    conv_model.opset_import[0].version = opset
    fails(conv_model, f"opset {opset}, supported are 7 to")


def test_initialiser_with_too_little_data(conv_model):
    tensor = conv_model.graph.initializer[0]
    tensor.raw_data = tensor.raw_data[:-8]
    fails(conv_model, "initialiser 'w' cannot be read, the file is damaged")


def test_constant_with_too_little_data(make_model):
    tensor = numpy_helper.from_array(np.ones(3, np.float32))
    tensor.raw_data = tensor.raw_data[:-4]
    nodes = [
        helper.make_node("Constant", [], ["c"], name="const", value=tensor),
        helper.make_node("Mul", ["x", "c"], ["y"]),
    ]
    fails(make_model(nodes, {"x": ("N", 3)}), "node 'const' .* is not valid ONNX: .* too small")


def test_node_with_an_unknown_attribute(make_model):
    node = helper.make_node("Relu", ["x"], ["y"], name="relu", slope=2)
    fails(make_model([node], IMAGE), "node 'relu' .* is not valid ONNX")


def test_initialiser_with_a_negative_dimension(conv_model):
    conv_model.graph.initializer[0].dims[0] = -1
    fails(conv_model, r"'w' cannot be read, .* its shape is \(-1, 3, 3, 3\)")


def numbers(*values):
    return np.array(values, np.int64)


HUGE = 2**31 - 1
# operator, constants and attributes
LARGE = {
    "pads of a window": ("Conv", {"w": np.ones((4, 3, 3, 3), np.float32)}, {"pads": [HUGE] * 4}),
    "dilations": ("MaxPool", {}, {"kernel_shape": [2, 2], "dilations": [HUGE, HUGE]}),
    "reach of a window": ("MaxPool", {}, {"kernel_shape": [9, 9], "dilations": [2**23, 1]}),
    "area": ("Pad", {"p": numbers(0, 0, 40000, 40000, 0, 0, 0, 2)}, {}),
    "pads": ("Pad", {"p": numbers(0, 0, HUGE, 0, 0, 0, HUGE, 0)}, {}),
    "repeats": ("Tile", {"r": numbers(1, 1, HUGE, HUGE)}, {}),
}


@pytest.mark.parametrize("case", LARGE)
def test_sizes_beyond_measure_are_refused_before_anything_is_allocated(make_model, case):
    op_type, constants, attributes = LARGE[case]
    node = helper.make_node(op_type, ["x", *constants], ["y"], name="big", **attributes)
    text = fails(make_model([node], IMAGE, constants=constants), rf"big \({op_type}\)")
    assert "expected" in text or "more than" in text


@pytest.mark.parametrize(
    ("op_type", "operands"),
    [
        ("ConstantOfShape", [numbers(2**20, 2**20)]),
        ("Expand", [np.ones(1, np.float32), numbers(2**40)]),
        ("Tile", [np.ones(8, np.float32), numbers(2**40)]),
        ("Range", [np.float32(0), np.float32(1e12), np.float32(1)]),
        ("Add", [np.ones((2**15, 1), np.float32), np.ones((1, 2**15), np.float32)]),
    ],
)
def test_constants_that_a_few_numbers_make_large_are_refused(make_model, op_type, operands):
    constants = {f"c{position}": operand for position, operand in enumerate(operands)}
    nodes = [
        helper.make_node(op_type, list(constants), ["c"], name="big"),
        helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    fails(make_model(nodes, IMAGE, constants=constants), "result has shape .* expected at most")


def test_inputs_beyond_measure(make_model):
    model = make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": ("N", 2**20, 2**20)})
    fails(model, "input 'x' has shape .* expected at most 1073741824 elements")


def test_sparse_initialisers(conv_model):
    sparse = conv_model.graph.sparse_initializer.add()
    sparse.values.name = "s"
    fails(conv_model, "sparse")


@pytest.fixture
def external_model(tmp_path, conv_model):
    """Write a model with its weight beside it, and return the two paths."""
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "net.onnx"
    model = onnx.ModelProto()
    model.CopyFrom(conv_model)
    onnx.save_model(
        model,
        path,
        save_as_external_data=True,
        location="net.data",
        size_threshold=0,
        convert_attribute=False,
    )
    return path, folder / "net.data"


def redirect(path, location):
    """Let the weight of a model lie elsewhere."""
    model = onnx.load_model(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = str(location)
    path.write_bytes(model.SerializeToString())


def test_external_data_beside_the_model(external_model, conv_model):
    assert load_onnx(external_model[0], name="test").fingerprint() == (
        load_onnx(conv_model, name="test").fingerprint()
    )


def test_external_data_missing(external_model):
    external_model[1].unlink()
    fails(external_model[0], r"'w' has its data in 'net\.data', which is missing")


def test_external_data_truncated(external_model):
    external_model[1].write_bytes(external_model[1].read_bytes()[:-4])
    fails(external_model[0], "ends too early")


def test_external_data_outside_the_folder(external_model):
    path, data = external_model
    outside = path.parent.parent / "secret.data"
    data.rename(outside)
    for location in ("../secret.data", outside, "sub/../../secret.data", "../model/../secret.data"):
        redirect(path, location)
        fails(path, "outside the model's folder; refused")


def test_external_data_behind_a_link_that_leaves_the_folder(external_model):
    path, data = external_model
    outside = path.parent.parent / "secret.data"
    data.rename(outside)
    data.symlink_to(outside)
    fails(path, "outside the model's folder; refused")


def test_external_data_of_a_model_given_as_an_object(external_model):
    model = onnx.load_model(external_model[0], load_external_data=False)
    fails(model, "give the path of the model")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite(conv_model, bad):
    weight = np.ones((4, 3, 3, 3), np.float32)
    weight[1, 2, 0, 0] = bad
    conv_model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    fails(conv_model, r"constant 'w' holds (NaN|an infinite value), used by node 'conv' \(Conv\)")


def test_computed_weights_that_are_not_finite(make_model):
    nodes = [
        helper.make_node("Transpose", ["raw"], ["w"], perm=[1, 0, 2, 3]),
        helper.make_node("Conv", ["x", "w"], ["y"], name="conv"),
    ]
    constants = {"raw": np.full((3, 4, 1, 1), np.nan, np.float32)}
    text = fails(make_model(nodes, IMAGE, constants=constants), "constant 'w' holds NaN")
    assert "node 'conv' (Conv) and computed from initialiser 'raw'" in text


def test_empty_weights(make_model):
    node = helper.make_node("Mul", ["x", "w"], ["y"], name="scale")
    model = make_model([node], IMAGE, constants={"w": np.ones((0, 4), np.float32)})
    fails(model, r"scale \(Mul\): constant 'w' has shape \(0, 4\): no elements")


def test_local_functions_are_inlined(make_model, compare, operators):
    model = make_model(
        [helper.make_node("Twice", ["x"], ["y"], name="t", domain="local")],
        IMAGE,
        domains={"local": 1},
    )
    body = [helper.make_node("Relu", ["a"], ["m"]), helper.make_node("Add", ["m", "m"], ["b"])]
    function = helper.make_function(
        "local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)]
    )
    model.functions.append(function)
    assert operators(compare(model)) == ["nn.relu", "add"]


def test_flipped_bytes_never_escape_as_another_error(tmp_path, conv_model):
    data = conv_model.SerializeToString()
    rng = np.random.default_rng(0)
    path = tmp_path / "bits.onnx"
    for _ in range(150):
        damaged = bytearray(data)
        for position in rng.integers(0, len(data), 3):
            damaged[position] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(damaged))
        with contextlib.suppress(ModelError):
            load_onnx(path)
