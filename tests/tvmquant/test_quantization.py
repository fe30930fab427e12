import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import tvmquant
from tests.tvmquant import networks
from tests.tvmquant.networks import MIXTURE_SHAPE
from tvmquant.bit_choice import W4A4, W4A8, W8A8, BitChoice
from tvmquant.errors import QuantizationError
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of
from tvmquant.layers import quantizable_layers
from tvmquant.quantization import activation_formats, apply_calibration
from tvmquant.twin import Twin


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    path = networks.export_mixture(tmp_path_factory.mktemp("mixture") / "mixture.onnx")
    return networks.compile_network(path, networks.images_of(MIXTURE_SHAPE))


@pytest.fixture(scope="module")
def calibration(mixture):
    return tvmquant.calibrate(mixture.graph, mixture.images)


GROUPED = BitChoice.parse("w4a8g32")
CHOICES = [W8A8, W4A8, W4A4, GROUPED, *map(BitChoice.parse, ("w8a4", "w6a5", "w2a7"))]


def uniform(graph, choice):
    """Return the choices that give every layer the choice, where its group can take it."""
    layers = quantizable_layers(graph)
    unable = {layer.group for layer in layers if not layer.allows(choice)}
    return {layer.id: choice for layer in layers if layer.group not in unable}


@pytest.mark.parametrize("choice", CHOICES)
def test_the_integers_have_the_chosen_widths(mixture, calibration, choice):
    choices = uniform(mixture.graph, choice)
    graph = tvmquant.quantize(mixture.graph, calibration, choices=choices)
    found = {}
    for _, call in bindings_of(graph.main):
        if qop.is_call(call, qop.QCONV2D, qop.QCONV2D_TRANSPOSE, qop.QDENSE):
            attrs = qop.attributes(call)
            found[attrs["id"]] = BitChoice.parse(attrs["choice"])
    assert choices.items() <= found.items()


@pytest.mark.parametrize("choice", [W4A8, W4A4, GROUPED])
def test_the_twin_predicts_the_integers(mixture, calibration, choice):
    import torch

    choices = uniform(mixture.graph, choice)
    graph = tvmquant.quantize(mixture.graph, calibration, choices=choices, correct_bias=False)
    annotated = apply_calibration(mixture.graph, calibration, choices=choices)
    with torch.no_grad():
        twin = Twin(annotated.module, mode="quantized")(torch.from_numpy(mixture.images)).numpy()
    (integers,) = tvmquant.simulate(graph, mixture.images)
    assert networks.sqnr_db(twin, integers) > networks.sqnr_db(
        networks.float_outputs(mixture)[0], integers
    )


def test_ranges_suit_the_width(mixture, calibration):
    wide, narrow = calibration.ranges(), calibration.ranges(dict.fromkeys(calibration.edges, 4))
    assert any(np.ptp(narrow[name]) < 0.9 * np.ptp(wide[name]) for name in wide)


def test_an_unknown_layer_is_named(mixture, calibration):
    layer = quantizable_layers(mixture.graph)[1].id
    with pytest.raises(QuantizationError, match=f"no layer '{layer}x'; did you mean '{layer}'"):
        tvmquant.quantize(mixture.graph, calibration, choices={f"{layer}x": W4A8})


def test_a_choice_without_a_kernel_is_named(mixture, calibration):
    layers = quantizable_layers(mixture.graph)
    depthwise = next(layer.id for layer in layers if layer.op == "depthwise_conv2d")
    with pytest.raises(QuantizationError, match=rf"'{depthwise}' .* w4a8g32; .*without groups"):
        tvmquant.quantize(mixture.graph, calibration, choices={depthwise: GROUPED})


def test_tied_layers_need_one_width():
    from dataclasses import replace

    from tvmquant.layers import Layer

    one = Layer("one", "conv2d", 1, 1, 1, ("x",), "x", "")
    layers = [one, replace(one, id="two")]
    assert activation_formats(layers, {"one": W4A4, "two": W4A4}) == {"x": W4A4.activation}
    with pytest.raises(QuantizationError, match=r"'one' .w4a4. and 'two' .w8a8. read the same"):
        activation_formats(layers, {"one": W4A4})


def test_bounds_hold_where_a_border_is_outside_what_the_input_reaches():
    """The sigmoid of small numbers is near 1/2: none of its integers is that of the border."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 3, 3, 3)), "b": rng.normal(size=4)}
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["s"], "gate"),
        helper.make_node("Conv", ["s", "w", "b"], ["y"], "conv", pads=[1] * 4),
    ]
    shapes = {"x": ["N", 3, 5, 5], "y": ["N", 4, 5, 5]}
    values = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()}
    constants = [numpy_helper.from_array(w.astype("float32"), n) for n, w in weights.items()]
    graph = helper.make_graph(nodes, "border", [values["x"]], [values["y"]], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    images = 0.03 * rng.normal(size=(8, 3, 5, 5)).astype("float32")
    imported = tvmquant.load_onnx(model)
    quantized = tvmquant.quantize(imported, tvmquant.calibrate(imported, images))
    (found,) = tvmquant.simulate(quantized, images)  # which checks every bound
    with torch.no_grad():
        expected = Twin(imported.module)(torch.from_numpy(images)).numpy()
    assert networks.sqnr_db(expected, found) > 40


def test_pairs_stay_free_where_bounding_them_costs_much():
    """Inputs far from zero multiply what is lost of the weights."""
    rng = np.random.default_rng(3)
    shapes = ((8, 6, 3, 3), (8, 8, 3, 3), (4, 8, 1, 1))
    weights = [rng.normal(0, (2 / np.prod(s[1:])) ** 0.5, s).astype(np.float32) for s in shapes]
    names = ["x", "first", "second", "y"]
    nodes = [
        helper.make_node("Conv", [names[i], f"w{i}"], [names[i + 1]], pads=[w.shape[2] // 2] * 4)
        for i, w in enumerate(weights)
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes, "far",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6, 9, 9])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 9, 9])],
            [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )  # fmt: skip
    graph = tvmquant.load_onnx(model)
    images = rng.normal(40, 1, (8, 6, 9, 9)).astype(np.float32)
    calibration = tvmquant.calibrate(graph, images)
    wanted = Twin(graph.module)(torch.from_numpy(images)).detach().numpy()

    def sqnr(**options):
        (found,) = tvmquant.simulate(tvmquant.quantize(graph, calibration, **options), images)
        return networks.sqnr_db(wanted, found)

    assert sqnr() > sqnr(bound_pairs=False) - 1.0


def test_a_pad_decided_in_float_is_held_where_another_reader_asks_for_integers():
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.normal(size=(4, 3, 3, 3)).astype(np.float32) for i in range(2)}
    pads = numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads")
    value = numpy_helper.from_array(np.float32(-15), "value")
    nodes = [
        helper.make_node("Softmax", ["x"], ["s"], axis=1),
        helper.make_node("Pad", ["s", "pads", "value"], ["padded"]),
        helper.make_node("Conv", ["padded", "w0"], ["y"]),
        helper.make_node("Conv", ["s", "w1"], ["z"]),
    ]
    values = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])
        for name, shape in {"x": (3, 5, 5), "y": (4, 5, 5), "z": (4, 3, 3)}.items()
    }
    constants = [pads, value, *(numpy_helper.from_array(w, n) for n, w in weights.items())]
    model = helper.make_model(
        helper.make_graph(nodes, "pad", [values["x"]], [values["y"], values["z"]], constants),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    graph = tvmquant.load_onnx(model)
    images = rng.normal(0, 3, (8, 3, 5, 5)).astype(np.float32)
    found = tvmquant.simulate(tvmquant.quantize(graph, tvmquant.calibrate(graph, images)), images)
    wanted = Twin(graph.module)(torch.from_numpy(images))
    for expected, integers in zip(wanted, found, strict=True):
        assert networks.sqnr_db(expected.detach().numpy(), integers) > 25


def test_weights_on_a_grid_stay_there():
    """A scale a little larger, for a short multiplier, would round all of them the same way."""
    weight = np.random.default_rng(0).choice([-1.0, 1.0], (8, 32, 3, 3)).astype(np.float32)
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)], "grid",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 32, 6, 6])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8, 6, 6])],
            [numpy_helper.from_array(weight, "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )  # fmt: skip
    graph = tvmquant.load_onnx(model)
    images = np.random.default_rng(1).integers(0, 2, (8, 32, 6, 6)).astype(np.float32)
    (found,) = tvmquant.simulate(
        tvmquant.quantize(graph, tvmquant.calibrate(graph, images)), images
    )
    wanted = Twin(graph.module)(torch.from_numpy(images)).detach().numpy()
    assert networks.sqnr_db(wanted, found) > 80
