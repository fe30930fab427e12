"""Resize equals ONNX Runtime wherever it is not rejected."""

import numpy as np
import pytest
from onnx import helper

from tvmquant.errors import UnsupportedModelError
from tvmquant.frontend import load_onnx

MODES = [
    *({"mode": "nearest", "nearest_mode": rounding} for rounding in ("floor", "ceil")),
    {"mode": "nearest"},
    {"mode": "nearest", "nearest_mode": "round_prefer_ceil"},
    {"mode": "linear"},
]
COORDINATES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]


def resize(make_model, attributes, sizes=None, scales=None, opset=13, name="up"):
    names = ["x", "", "", "c"] if scales is None else ["x", "", "c"]
    node = helper.make_node("Resize", names, ["y"], name=name, **attributes)
    constant = np.array(sizes, np.int64) if scales is None else np.array(scales, np.float32)
    return make_model([node], {"x": (2, 3, 6, 9)}, constants={"c": constant}, opset=opset)


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "-".join(map(str, mode.values())))
def test_sizes_up_and_down(make_model, compare, mode, coordinates):
    attributes = {**mode, "coordinate_transformation_mode": coordinates}
    compare(resize(make_model, attributes, sizes=[2, 3, 13, 4]), tolerance=1e-4)


@pytest.mark.parametrize("scales", [[1, 1, 2, 2], [1, 1, 0.5, 1 / 3], [1, 1, 5 / 3, 3]])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_scales(make_model, compare, mode, scales):
    compare(resize(make_model, {"mode": mode}, scales=scales), tolerance=1e-4)


CUBIC = {
    "half_pixel": {},
    "align_corners": {"coordinate_transformation_mode": "align_corners"},
    "asymmetric": {"coordinate_transformation_mode": "asymmetric"},
    "excluded": {"exclude_outside": 1, "cubic_coeff_a": -0.5},
}


@pytest.mark.parametrize("case", CUBIC)
def test_cubic(make_model, compare, operators, case):
    model = resize(make_model, {"mode": "cubic", **CUBIC[case]}, sizes=[2, 3, 13, 4])
    graph = compare(model, tolerance=1e-4)
    assert set(operators(graph)) == {"matmul", "permute_dims"}


@pytest.mark.parametrize(
    "coordinates", ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "asymmetric"]
)
@pytest.mark.parametrize("mode", [*MODES, {"mode": "cubic"}], ids=lambda m: "-".join(m.values()))
def test_scales_that_give_no_whole_number(make_model, compare, mode, coordinates):
    attributes = {**mode, "coordinate_transformation_mode": coordinates}
    model = resize(make_model, attributes, scales=[1, 1, 0.7, 1.3], opset=19)
    compare(model, tolerance=1e-4)


def test_one_pixel_is_the_first(make_model, compare):
    attributes = {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}
    compare(resize(make_model, attributes, sizes=[2, 3, 1, 4]), tolerance=1e-4)


@pytest.mark.parametrize(("kind", "opset"), [("Upsample", 9), ("Resize", 10)])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_old_opsets(make_model, compare, kind, opset, mode):
    node = helper.make_node(kind, ["x", "c"], ["y"], mode=mode)
    constants = {"c": np.array([1, 1, 2, 3], np.float32)}
    compare(make_model([node], {"x": ("N", 3, 4, 5)}, constants=constants, opset=opset))


def test_sizes_with_the_symbolic_batch(make_model, compare, operators):
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Slice", ["s", "zero", "two"], ["front"]),
        helper.make_node("Concat", ["front", "back"], ["sizes"], axis=0),
        helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="nearest"),
    ]
    constants = {name: np.array([n]) for name, n in (("zero", 0), ("two", 2))}
    constants["back"] = np.array([8, 10])
    graph = compare(make_model(nodes, {"x": ("N", 3, 4, 5)}, constants=constants))
    assert operators(graph) == ["image.resize2d"]


def test_axes(make_model, compare):
    node = helper.make_node("Resize", ["x", "", "c"], ["y"], axes=[2, 3])
    constants = {"c": np.array([2, 3], np.float32)}
    compare(make_model([node], {"x": ("N", 3, 4, 5)}, constants=constants, opset=18))


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize(
    "target",
    [{"sizes": [2, 3, 4, 3]}, {"sizes": [2, 3, 4, 20]}, {"scales": [1, 1, 0.5, 0.4]}],
    ids=str,
)
def test_filters_as_wide_as_what_they_shrink(make_model, compare, mode, target):
    compare(resize(make_model, {"mode": mode, "antialias": 1}, **target, opset=18), tolerance=1e-4)


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
@pytest.mark.parametrize("mode", MODES[1:3], ids=lambda mode: "-".join(map(str, mode.values())))
@pytest.mark.parametrize("sizes", [[12, 12], [3, 8], [4, 5]], ids=str)
def test_kept_aspect_ratios(make_model, compare, mode, policy, sizes):
    attributes = {**mode, "keep_aspect_ratio_policy": policy, "axes": [2, 3]}
    compare(resize(make_model, attributes, sizes=sizes, opset=18), tolerance=1e-4)


REGIONS = {
    "inside": [0.1, 0.2, 0.7, 0.9],
    "beyond": [-0.2, 0.3, 0.8, 1.4],
    "a point": [0.4, 0.4, 0.4, 0.4],
}


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("value", [0.0, 1.5])
def test_crops(make_model, compare, region, mode, value):
    attributes = {"mode": mode, "extrapolation_value": value, "axes": [2, 3]}
    node = helper.make_node(
        "Resize", ["x", "roi", "", "sizes"], ["y"],
        coordinate_transformation_mode="tf_crop_and_resize", **attributes,
    )  # fmt: skip
    constants = {"roi": np.array(REGIONS[region], np.float32), "sizes": np.array([4, 5])}
    model = make_model([node], {"x": (2, 3, 6, 9)}, constants=constants, opset=18)
    compare(model, tolerance=1e-4)


REJECTED = {
    "expected a start and an end": (
        {"coordinate_transformation_mode": "tf_crop_and_resize"},
        [2, 3, 3, 3],
        None,
    ),
    "mode='lanczos'": ({"mode": "lanczos"}, [2, 3, 3, 3], None),
    "takes the batch": ({"keep_aspect_ratio_policy": "not_larger"}, [2, 3, 3, 3], None),
    "axis 1": ({}, None, [1, 2, 2, 2]),
    "aligns the corners": (
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        None,
        [1, 1, 0.7, 2],
    ),
}


@pytest.mark.parametrize("reason", REJECTED)
def test_what_is_not_a_fixed_sum_of_neighbours_is_rejected_by_name(make_model, reason):
    attributes, sizes, scales = REJECTED[reason]
    model = resize(make_model, attributes, sizes, scales, opset=18)
    with pytest.raises(UnsupportedModelError, match=rf"up \(Resize\): .*{reason}"):
        load_onnx(model)
