"""Signs and weights of two values are found in what exporters write."""

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.graphs import const, graph, normal, run_twin
from tvmquant.ir.imported_quantizers import imported_weight
from tvmquant.passes.recognize_binary import RecognizeBinary, signs_and_magnitudes

op, nn = relax.op, relax.op.nn
SHAPE = (2, 4, 5, 5)
RNG = np.random.default_rng(0)
SIGNS = np.sign(RNG.normal(size=(6, 4, 3, 3)))
SCALE = np.float32([0.5, 0.25, 1.0, 3.0, 0.1, 0.7])
FREE = normal(6, 4, 3, 3)


def sign(emit, x):
    return op.sign(x)


def larq_sign(emit, x):
    return op.sign(emit(op.add(emit(op.sign(x)), const(np.float32(0.1)))))


def choice(emit, x):
    condition = emit(op.greater_equal(x, const(np.float32(0.0))))
    return op.where(condition, const(np.float32(1.0)), const(np.float32(-1.0)))


def mirrored_choice(emit, x):
    condition = emit(op.less(x, const(np.float32(0.0))))
    return op.where(condition, const(np.float32(-1.0)), const(np.float32(1.0)))


def negated_choice(emit, x):
    condition = emit(op.logical_not(emit(op.less(x, const(np.float32(0.0))))))
    return op.where(condition, const(np.float32(1.0)), const(np.float32(-1.0)))


def mask(emit, x):
    cast = emit(op.astype(emit(op.greater_equal(x, const(np.float32(0.0)))), "float32"))
    doubled = emit(op.multiply(cast, const(np.float32(2.0))))
    return op.add(doubled, const(np.float32(-1.0)))


def straight_through(emit, x):
    clipped = emit(op.clip(x, -1.0, 1.0))
    difference = emit(op.subtract(emit(op.sign(x)), clipped))
    return op.add(difference, clipped)


def scaled(emit, x):
    return op.multiply(emit(op.sign(x)), const(np.float32(1.0)))


FORMS = [sign, larq_sign, choice, mirrored_choice, negated_choice, mask, straight_through, scaled]


def layer(emit, x, weight=FREE):
    return emit(nn.conv2d(x, const(np.float32(weight)), padding=1), "conv")


def recognized(body):
    module = graph(body, SHAPE)
    found = RecognizeBinary()(module)
    tvm.ir.assert_structural_equal(RecognizeBinary()(found), found)
    relax.analysis.well_formed(found)  # raises
    return module, found


def calls(module):
    values = (b.value for b in module["main"].body.blocks[0].bindings)
    return [str(v.op.name).rpartition(".")[2] for v in values if isinstance(v, relax.Call)]


def quantizers(module):
    values = (b.value for b in module["main"].body.blocks[0].bindings)
    return [v for v in values if getattr(getattr(v, "op", None), "name", "").endswith("fake_quant")]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_a_sign_before_a_layer(form):
    module, found = recognized(lambda emit, x: layer(emit, emit(form(emit, x))))
    (call,) = quantizers(found)
    assert calls(found) == ["fake_quant", "conv2d"]
    assert (call.attrs["format"], int(call.attrs["strict"])) == ("ubinary", 0)
    x = normal(*SHAPE)  # without zeros, of which ONNX's Sign gives 0
    np.testing.assert_allclose(
        run_twin(found, [x])[0], run_twin(module, [x])[0], rtol=1e-6, atol=1e-6
    )


def test_zero_is_positive():
    _, found = recognized(lambda emit, x: layer(emit, emit(op.sign(x)), np.ones_like(FREE)))
    out = run_twin(found, [np.zeros(SHAPE, np.float32)])[0]
    assert out.max() == 4 * 9


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_comparisons_with_thresholds_and_scales(scale):
    def body(emit, x):
        condition = emit(op.greater(x, const(np.float32(0.25))))
        ends = const(np.float32(scale)), const(np.float32(-scale))
        return layer(emit, emit(op.where(condition, *ends)))

    module, found = recognized(body)
    (call,) = quantizers(found)
    assert int(call.attrs["strict"]) == 1
    x = np.round(normal(*SHAPE) * 4) / 4  # thresholds among them
    np.testing.assert_array_equal(run_twin(found, [x])[0], run_twin(module, [x])[0])


def above(emit, x, threshold):
    return emit(op.greater(x, const(np.float32(threshold))))


STEPS = {
    "up": lambda emit, x: op.where(above(emit, x, 0.25), const(3.0), const(0.0)),
    "to 0": lambda emit, x: op.where(above(emit, x, 0.25), const(0.0), const(-2.0)),
    "cast": lambda emit, x: op.astype(above(emit, x, -0.5), "float32"),
    "cast and scaled": lambda emit, x: op.multiply(
        emit(op.astype(above(emit, x, 0.5), "float32")), const(0.25)
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_from_or_to_zero(name):
    module, found = recognized(lambda emit, x: layer(emit, emit(STEPS[name](emit, x))))
    (call,) = quantizers(found)
    assert call.attrs["format"] == "ubinary"
    x = np.round(normal(*SHAPE) * 4) / 4  # thresholds among them
    np.testing.assert_allclose(
        run_twin(found, [x])[0], run_twin(module, [x])[0], rtol=1e-5, atol=1e-5
    )


def other_ends(emit, x):
    condition = emit(op.greater(x, const(np.float32(0.0))))
    return op.where(condition, const(np.float32(1.0)), const(np.float32(-0.5)))


def other_difference(emit, x):
    difference = emit(op.subtract(emit(op.sign(x)), emit(op.abs(x))))
    return op.add(difference, x)


def step(emit, x):
    return op.sign(emit(nn.relu(x)))


def moved_step(emit, x):
    return op.sign(emit(nn.max_pool2d(emit(op.clip(x, 0.0, 6.0)), (3, 3), (1, 1), 1)))


@pytest.mark.parametrize("form", [other_ends, other_difference, step, moved_step])
def test_what_is_no_sign(form):
    module, found = recognized(lambda emit, x: layer(emit, emit(form(emit, x))))
    tvm.ir.assert_structural_equal(found, module)


def test_signs_that_no_layer_reads_are_left_alone():
    _, found = recognized(lambda emit, x: op.multiply(x, emit(op.sign(x))))
    assert calls(found) == ["sign", "multiply"]


def test_signs_reach_layers_through_movers():
    def body(emit, x):
        return layer(emit, emit(nn.max_pool2d(emit(op.sign(x)), (3, 3), (1, 1), 1)))

    _, found = recognized(body)
    assert len(quantizers(found)) == 1


@pytest.mark.parametrize("noise", [0.0, 2.0**-24])
def test_a_weight_of_one_magnitude_for_each_output(noise):
    weight = SIGNS * SCALE[:, None, None, None]
    spread = weight + noise * RNG.uniform(-1, 1, weight.shape)
    _, found = recognized(lambda emit, x: layer(emit, x, spread))

    def body(emit, x):
        held = imported_weight(
            SIGNS.astype(np.int64), SCALE, np.zeros(6, np.int64), axis=0, groups=1, name="conv"
        )
        return emit(nn.conv2d(x, emit(held), padding=1), "conv")

    if noise == 0.0:
        tvm.ir.assert_structural_equal(found, graph(body, SHAPE), map_free_vars=True)
    (call,) = quantizers(found)
    assert call.attrs["format"] == "binary"


def test_a_weight_with_zeros_is_ternary():
    weight = SIGNS * SCALE[:, None, None, None] * (RNG.uniform(size=SIGNS.shape) > 0.4)
    _, found = recognized(lambda emit, x: layer(emit, x, weight))
    (call,) = quantizers(found)
    assert call.attrs["format"] == "int2"


@pytest.mark.parametrize("signed", [True, False])
def test_a_weight_that_is_a_sum_of_signs(signed):
    """It is taken apart where the input is signs: else 8 bits are faster."""
    weight = SIGNS * SCALE[:, None, None, None] + 0.2 * np.sign(FREE)

    def body(emit, x):
        return layer(emit, emit(op.sign(x)) if signed else x, weight)

    module, found = recognized(body)
    if not signed:
        tvm.ir.assert_structural_equal(found, module)
        return
    assert calls(found) == ["fake_quant", "fake_quant", "conv2d", "fake_quant", "conv2d", "add"]
    assert [q.attrs["format"] for q in quantizers(found)] == ["ubinary", "binary", "binary"]
    x = normal(*SHAPE)
    np.testing.assert_allclose(
        run_twin(found, [x])[0], run_twin(module, [x])[0], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("high", "passed"), [(1.0, True), (0.5, False)])
def test_clips_on_either_side_of_the_threshold(high, passed):
    def body(emit, x):
        clipped = emit(op.clip(x, 0.0, high))
        return layer(emit, emit(op.sign(emit(op.add(clipped, const(np.float32(-0.5)))))))

    _, found = recognized(body)
    assert ("clip" in calls(found)) != passed
    x, signs = normal(*SHAPE), []
    for each in (found, graph(lambda emit, x: layer(emit, emit(choice(emit, x))), SHAPE)):
        signs.append(run_twin(each, [x - 0.5 if signs else x])[0])
    np.testing.assert_allclose(*signs, rtol=1e-5, atol=1e-5)


def test_an_output_that_is_multiplied_by_zero():
    weight = SIGNS * SCALE[:, None, None, None]
    weight[2] = 0.0
    steps, scale = signs_and_magnitudes(weight)
    assert np.all(np.abs(steps) == 1)
    assert 0.0 < scale[2] < 1e-37


@pytest.mark.parametrize(
    "weight",
    [
        FREE,
        np.ones((4, 3, 3, 3)) / 9,  # a mean
        np.eye(4)[:, :, None, None],  # picks inputs
        np.sign(FREE) * np.abs(FREE).max() * (1 + 0.01 * RNG.uniform(size=FREE.shape)),
        np.sign(normal(6, 1, 1, 1)),  # one number each
        np.full((2, 3, 1, 1), np.nan),
    ],
)
def test_weights_of_other_values(weight):
    assert signs_and_magnitudes(weight) is None
