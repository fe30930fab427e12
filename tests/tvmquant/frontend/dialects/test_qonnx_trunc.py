"""Truncations of QONNX compute as its documentation says, on integers times a scale."""

import numpy as np
import pytest
from onnx import helper
from onnx.numpy_helper import from_array, to_array
from onnx.reference import ReferenceEvaluator

from tests.tvmquant.frontend.dialects.qonnx_reference import OPERATORS
from tvmquant.errors import UnsupportedModelError
from tvmquant.frontend import load_onnx

QONNX = "qonnx.custom_op.general"
SHAPE = (4, 256)
SCALE = np.float32(0.05)


def trunc_model(make_model, inputs, constants, before=(), **attributes):
    node = helper.make_node("Trunc", inputs, ["y"], name="trunc", domain=QONNX, **attributes)
    return make_model(
        [*before, node], {"x": SHAPE}, constants=constants, opset=21, domains={QONNX: 1}
    )


def first_version(make_model, in_bits, out_bits, *, scale=SCALE, zero=0.0, **options):
    constants = {
        "s": np.float32(scale),
        "z": np.float32(zero),
        "i": np.float32(in_bits),
        "o": np.float32(out_bits),
    }
    source = "r" if options.get("before") else "x"
    return trunc_model(make_model, [source, "s", "z", "i", "o"], constants, **options)


def second_version(make_model, in_bits, out_bits, out_scale, *, zeros=False, **attributes):
    constants = {
        "s": SCALE,
        "z": np.float32(0),
        "i": np.float32(in_bits),
        "t": np.float32(out_scale),
        "u": np.float32(0),
        "o": np.float32(out_bits),
    }
    inputs = ["x", "s", "z", "i", "t", *(["u"] if zeros else []), "o"]
    return trunc_model(make_model, inputs, constants, **attributes)


def equal_to_reference(run, rewritten, model, low, high):
    """Compare on all integers of a range times the scale, with float32's error."""
    x = np.resize(np.arange(low, high + 1), SHAPE).astype(np.float32) * SCALE
    (expected,) = ReferenceEvaluator(model, new_ops=OPERATORS).run(None, {"x": x})
    result = rewritten(model)
    np.testing.assert_array_equal(run(result, {"x": x})[0], expected)
    return result


@pytest.mark.parametrize("mode", ["FLOOR", "CEIL"])
@pytest.mark.parametrize("lost", [0, 1, 2, 4])
def test_first_version(make_model, rewritten, run, mode, lost):
    """Its result has the scale of its input."""
    model = first_version(make_model, 8 + lost, 8, rounding_mode=mode)
    limit = 2 ** (7 + lost)
    equal_to_reference(run, rewritten, model, -limit, limit - 2**lost)


@pytest.mark.parametrize("mode", ["FLOOR", "CEIL"])
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("narrow", [0, 1])
@pytest.mark.parametrize("zeros", [False, True])
def test_second_version(make_model, rewritten, run, mode, signed, narrow, zeros):
    """It clips to its levels."""
    model = second_version(
        make_model, 8, 5, SCALE * 8, rounding_mode=mode, signed=signed, narrow=narrow, zeros=zeros
    )
    equal_to_reference(run, rewritten, model, -400, 400)


def test_to_the_nearest(make_model, rewritten, run):
    """Of a scale that float32 multiplies exactly, ties round to even."""
    model = second_version(make_model, 8, 6, SCALE * 4, rounding_mode="ROUND")
    for tensor in model.graph.initializer:
        if tensor.name in "st":
            tensor.CopyFrom(from_array(np.float32(0.25 if tensor.name == "s" else 1), tensor.name))
    x = np.resize(np.arange(-100, 101), SHAPE).astype(np.float32) / 4
    (found,) = run(rewritten(model), {"x": x})
    np.testing.assert_array_equal(found, np.clip(np.round(x), -32, 31))


def bits_of_result(model):
    """Return the type of the integers that a rewritten model gives."""
    zero_point = model.graph.node[-1].input[2]
    (tensor,) = [each for each in model.graph.initializer if each.name == zero_point]
    return to_array(tensor).dtype.name


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([], "int16"),
        ([("Relu", ["x"])], "uint8"),
        ([("Relu", ["x"]), ("Mul", ["r0", "s"]), ("Reshape", ["r1", "shape"])], "uint8"),
        ([("Relu", ["x"]), ("Mul", ["r0", "negative"])], "int16"),
        ([("Quant", ["x", "s", "z", "i"])], "uint8"),
    ],
)
def test_the_sign_of_the_first_version_follows_from_what_it_reads(
    make_model, rewritten, nodes, expected
):
    """What has none has half as many levels; unknown ones have room for both."""
    before = [
        helper.make_node(
            op_type, inputs, [f"r{index}"],
            **({"domain": QONNX, "signed": 0} if op_type == "Quant" else {}),
        )
        for index, (op_type, inputs) in enumerate(nodes)
    ]  # fmt: skip
    before.append(helper.make_node("Identity", [f"r{len(nodes) - 1}" if nodes else "x"], ["r"]))
    model = first_version(make_model, 10, 8, before=before)
    model.graph.initializer.extend(
        [from_array(np.float32(-2), "negative"), from_array(np.array([-1, 256]), "shape")]
    )
    assert bits_of_result(rewritten(model)) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": [0.1, 0.2]}, "it truncates integers of several scales"),
        ({"zero": 1}, "or with a zero point"),
        ({"in_bits": 7}, "it truncates -1 bits, expected a number >= 0"),
        ({"rounding_mode": "UP"}, "rounding_mode='UP', expected one of FLOOR, CEIL, ROUND"),
    ],
)
def test_what_has_no_such_form_is_refused_by_name(make_model, options, message):
    model = first_version(make_model, **{"in_bits": 10, "out_bits": 8, **options})
    with pytest.raises(UnsupportedModelError, match=rf"trunc \({QONNX}.Trunc\): .*{message}"):
        load_onnx(model)


def test_scales_that_are_no_power_of_two_apart(make_model):
    model = second_version(make_model, 10, 8, SCALE * 3)
    with pytest.raises(UnsupportedModelError, match=r"scales are 0.05 and 0.15, expected a power"):
        load_onnx(model)
