import numpy as np
import pytest
import torch
import tvm
from tvm import relax

from tests.passes.graphs import calls, const, distance, graph, normal, quantize, run_twin
from tests.passes.test_insert_requantize import CASES, SHAPE, Case, Emitter, inputs_of, network
from tvmquant.errors import QuantizationError
from tvmquant.formats import Uniform
from tvmquant.graph import Graph
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of
from tvmquant.layers import quantizable_layers
from tvmquant.passes.annotate_quantization import AnnotateQuantization
from tvmquant.passes.apply_calibration import ApplyCalibration
from tvmquant.passes.fix_scales import FixScales
from tvmquant.passes.insert_requantize import InsertRequantize
from tvmquant.quantizer import grouped_weight_scales, weight_scales
from tvmquant.simulator import simulate
from tvmquant.twin import Twin
from tvmquant.weight_pairs import outputs_first

op = relax.op


def weights_of(module):
    return [c for c in calls(module, qop.FAKE_QUANT) if qop.attributes(c)["role"] == "weight"]


def integers_of_the_twin(module):
    """Return what the twin's fake_quants make of the weights, in steps of their scales."""
    twin, found = Twin(module), []
    quantizers = twin.quantizers
    for call in weights_of(module):
        attrs = qop.attributes(call)
        values, scale = (qop.constant_array(a) for a in call.args[:2])
        real = quantizers[attrs["id"]](torch.from_numpy(values)).numpy().astype(np.float64)
        step = scale.astype(np.float64)
        if step.ndim == 1:
            step = step.reshape([-1 if i == attrs["axis"] else 1 for i in range(values.ndim)])
        if len(call.args) > 3:
            step = step * qop.constant_array(call.args[3])
        found.append(outputs_first(np.rint(real / step), attrs["axis"], attrs["groups"]))
    return found


def integers_of_the_graph(module):
    contractions = (qop.QCONV2D, qop.QCONV2D_TRANSPOSE, qop.QDENSE)
    values = (value for _, value in bindings_of(module["main"]))
    return [qop.constant_array(v.args[1]) for v in values if qop.is_call(v, *contractions)]


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize(
    "name",
    ["downsampling residual", "dense block", "dense layers", "transposed convolution in groups",
     "transposed convolution with gaps", "depthwise separable", "slopes per channel"],
)  # fmt: skip
def test_what_the_twin_computes_with_is_what_ships(name, bounded):
    case = CASES[name]
    levels = quantize(network(case), inputs_of(case), scales=FixScales(bound_pairs=bounded))
    pairs = zip(
        integers_of_the_twin(levels.calibrated), integers_of_the_graph(levels.integer), strict=True
    )
    for trained, shipped in pairs:
        np.testing.assert_array_equal(trained, shipped)
    bounds = [qop.attributes(c)["bounded"] for c in weights_of(levels.calibrated)]
    unbounded = name in ("dense layers", "transposed convolution in groups")
    assert any(bounds) == (bounded and not unbounded)


@pytest.mark.parametrize("group", [0, 32])
def test_weights_in_groups_are_what_ships(group):
    case = CASES["residual"]
    levels = quantize(
        network(case), inputs_of(case), weights=dict.fromkeys("ab", Uniform(4, True, group))
    )
    pairs = zip(
        integers_of_the_twin(levels.calibrated), integers_of_the_graph(levels.integer), strict=True
    )
    for trained, shipped in pairs:
        np.testing.assert_array_equal(trained, shipped)


WEIGHT = normal(5, 8, 3, 3)


def scaled(bits, group=0, method="mse"):
    """Return the fake_quant of `WEIGHT`, scaled for a network of one layer."""
    module = graph(lambda emit, x: emit(op.nn.conv2d(x, const(WEIGHT), padding=1), "a"), SHAPE)
    levels = quantize(
        module,
        [normal(*SHAPE)],
        weights={"a": Uniform(bits, True, group)},
        scales=FixScales(method),
    )
    (call,) = weights_of(levels.calibrated)
    return call


@pytest.mark.parametrize("method", ["minmax", "mse"])
@pytest.mark.parametrize(("bits", "limit"), [(8, 127), (4, 7), (3, 3), (2, 1)])
def test_scales_are_those_of_the_method_or_a_little_larger(method, bits, limit):
    call = scaled(bits, method=method)
    attrs, scale = qop.attributes(call), qop.constant_array(call.args[1])
    best = weight_scales(WEIGHT, 0, bits, method)
    assert ((scale >= best) & (scale <= best * (17 / 16))).all()
    assert (attrs["calibrated"], attrs["qmin"], attrs["qmax"]) == (1, -limit, limit)
    assert (scale.dtype, qop.constant_array(call.args[2])) == (np.float32, 0)


def test_groups_have_multipliers():
    call = scaled(4, 32)
    best, multiplier = grouped_weight_scales(WEIGHT, 32)
    scale = qop.constant_array(call.args[1])
    assert ((scale >= best.astype(np.float32)) & (scale <= best * (17 / 16))).all()
    np.testing.assert_array_equal(qop.constant_array(call.args[3]), multiplier)
    assert qop.attributes(call)["qmax"] == 7


def test_a_weight_behind_two_scales_is_rounded_as_what_multiplies_the_integers():
    weight = normal(5, 8, 1, 1)

    def body(emit, x):
        a, b = (
            emit(op.nn.conv2d(x, const(normal(4, 8, 1, 1) * np.float32(f))), n)
            for n, f in (("a", 16), ("b", 1))
        )
        return emit(op.nn.conv2d(emit(op.concat([a, b], 1)), const(weight)), "reader")

    levels = quantize(graph(body, SHAPE), [normal(*SHAPE)])
    (call,) = [
        c for c in weights_of(levels.calibrated) if qop.attributes(c)["id"] == "reader.weight"
    ]
    a, b = (
        qop.constant_array(c.args[1])[0]
        for c in calls(levels.calibrated, qop.FAKE_QUANT)
        if qop.attributes(c)["id"] in ("a", "b")
    )
    factors = np.repeat([1.0, b / a], 4).reshape(1, 8, 1, 1).astype(np.float32)
    assert 10 < a / b < 25
    best = weight_scales(weight * factors, 0, 8, "mse")
    scale = qop.constant_array(call.args[1])
    assert ((scale >= best * (1 - 1e-6)) & (scale <= best * (17 / 16))).all()
    multiplier = qop.constant_array(call.args[3])
    np.testing.assert_allclose(multiplier, np.broadcast_to(1 / factors, multiplier.shape), 1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "conv, norm, relu6",
        "residual",
        "a negative factor",
        "leaky relu",
        "dense layers",
        "classifier",
    ],
)
def test_multipliers_are_exact_and_short(name):
    case = CASES[name]
    levels = quantize(network(case), inputs_of(case))
    for call in calls(levels.integer, qop.REQUANTIZE):
        assert qop.attributes(call)["compute_dtype"] == "int32"


def test_weights_with_a_scale_keep_it_exactly():
    case = CASES["residual"]
    levels = quantize(network(case), inputs_of(case))

    class Given(DataflowRewriter):
        def visit_binding(self, _var, value):
            if not qop.is_call(value, qop.FAKE_QUANT) or qop.attributes(value)["role"] != "weight":
                return None
            scale = qop.constant_array(value.args[1]) * np.float32(0.937)
            args = [value.args[0], qop.constant(scale), value.args[2]]
            return qop.emit(qop.FAKE_QUANT, args, qop.attributes(value), value.span)

    given = Given(levels.calibrated).rewrite()
    means = {name: [1.0] * 8 for name in "ab"}
    after = FixScales(bound_pairs=True, input_means=means)(given)
    tvm.ir.assert_structural_equal(after, given)
    integer = InsertRequantize()(given)
    for call, found in zip(weights_of(given), integers_of_the_graph(integer), strict=True):
        weight, scale = (qop.constant_array(a) for a in call.args[:2])
        exact = np.clip(np.rint(weight / scale.reshape(-1, 1, 1, 1)), -127, 127)
        np.testing.assert_array_equal(found, exact)
    (x,) = inputs_of(case)
    expected = run_twin(given, [x], mode="quantized")
    assert distance(simulate(integer, x), expected) <= 1.5


@pytest.mark.parametrize("bits", [8, 5])
def test_activations_with_a_scale_keep_it_exactly(bits):
    case = CASES["residual"]
    (x,) = inputs_of(case)
    held = Uniform(bits, signed=False)
    # the input, and the tensor between the layers
    numbers = {"x0": (0.0371, 3), "lv2": (0.2213, 2)}

    class Given(DataflowRewriter):
        def visit_binding(self, _var, value):
            if not qop.is_call(value, qop.FAKE_QUANT):
                return None
            attrs = qop.attributes(value)
            if attrs["id"] not in numbers:
                return None
            scale, zero = numbers[attrs["id"]]
            given = {"format": held.name, "qmin": 0, "qmax": held.qmax, "calibrated": 1, "fixed": 1}
            constants = [np.float32([scale]), np.int32([zero])]
            args = [self.lookup(value.args[0]), *map(qop.constant, constants)]
            return qop.emit(qop.FAKE_QUANT, args, attrs | given, value.span)

    module = AnnotateQuantization()(network(case))
    ids = [qop.attributes(c)["id"] for c in calls(module, qop.FAKE_QUANT)]
    assert numbers.keys() <= set(ids)
    given = Given(module).rewrite()
    layers = quantizable_layers(Graph(given, "L1", "net", ("x",), ("y",)))
    assert {layer.given for layer in layers} == {held}
    free = {name: (-4.0, 4.0) for name in ids if name not in numbers}
    calibrated = FixScales()(ApplyCalibration(free)(given))
    integer = InsertRequantize()(calibrated)
    border = qop.attributes(calls(integer, qop.QUANTIZE)[0])
    assert (np.float32(border["scale"]), border["zero_point"]) == (np.float32(0.0371), 3)
    hidden = qop.attributes(calls(integer, qop.REQUANTIZE)[0])
    assert (hidden["output_zero_point"], hidden["qmin"], hidden["qmax"]) == (2, 2, held.qmax)
    # one step of 5 bits is several of the output's range
    expected = run_twin(calibrated, [x], mode="quantized")
    assert distance(simulate(integer, x), expected) <= (1.5 if bits == 8 else 12.0)


def test_biases_are_not_rounded_to_steps_of_the_accumulator():
    bias = np.linspace(-0.05, 0.05, 8, dtype=np.float32).reshape(8, 1, 1)
    weight = normal(8, 8, 1, 1)

    def body(emit, x):
        y = emit(op.add(emit(op.nn.conv2d(x, const(weight)), "a"), const(bias)))
        return emit(op.reshape(y, [2, -1]))

    x = normal(*SHAPE)
    levels = quantize(
        graph(body, SHAPE),
        [x],
        weights={"a": Uniform(2, True)},
        activations={"x0": Uniform(2, False)},
    )
    (scale,) = (qop.constant_array(c.args[1]) for c in weights_of(levels.calibrated))
    step = scale * qop.constant_array(calls(levels.calibrated, qop.FAKE_QUANT)[0].args[1])
    assert (step > 0.5).all()  # ten times the largest bias
    expected = run_twin(levels.calibrated, [x], mode="quantized")
    assert distance(simulate(levels.integer, x), expected) <= 0.01


@pytest.mark.parametrize("name", ["residual", "dense block", "transposed convolution in groups"])
def test_twice_is_once(name):
    levels = quantize(network(CASES[name]), inputs_of(CASES[name]))
    tvm.ir.assert_structural_equal(FixScales()(levels.calibrated), levels.calibrated)
    relax.analysis.well_formed(levels.calibrated)


def test_activations_have_to_be_calibrated():
    module = AnnotateQuantization()(network(CASES["residual"]))
    with pytest.raises(QuantizationError, match="not calibrated"):
        FixScales()(module)


LAYERS = {
    "convolution": lambda e, x: e.conv(x, 16, padding=0),
    "groups": lambda e, x: e.conv(x, 16, groups=2, padding=0),
    "a factor": lambda e, x: e(
        op.multiply(e.conv(x, 8, padding=0, groups=8), const(e.numbers(1, 8, 1, 1)))
    ),
    "dense": lambda e, x: e.dense(e(op.reshape(x, (2, -1))), 5),
    "without a bias": lambda e, x: e(op.nn.conv2d(x, const(e.numbers(8, 8, 3, 3))), "conv"),
    "dense without a bias": lambda e, x: e(
        op.matmul(e(op.reshape(x, (2, -1))), const(e.numbers(648, 5))), "fc"
    ),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_corrected_bias_keeps_the_mean_of_the_output(layer):
    case = Case(LAYERS[layer], "")
    module = graph(lambda emit, *x: case.body(Emitter(emit), *x), *case.shapes)
    inputs = [x + np.float32(2.0) for x in inputs_of(case)]
    names = dict.fromkeys(("conv", "fc"), Uniform(4, signed=True))
    means = {}
    twin = Twin(quantize(module, inputs, weights=names).annotated)

    def observe(name, x):
        means[name] = x.mean((0, 2, 3) if x.ndim == 4 else 0).tolist()

    twin.observe_input = observe
    with torch.no_grad():
        expected = twin(*(torch.from_numpy(x) for x in inputs)).numpy()

    def errors(input_means):
        levels = quantize(module, inputs, weights=names, scales=FixScales(input_means=input_means))
        for found in (
            simulate(levels.integer, *inputs)[0],
            run_twin(levels.calibrated, inputs, mode="quantized")[0],
        ):
            difference = found - expected
            yield np.abs(difference.mean((0, 2, 3) if difference.ndim == 4 else 0)).max()

    for corrected, plain in zip(errors(means), errors({}), strict=True):
        assert corrected < 0.25 * plain
