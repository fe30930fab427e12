import json

import numpy as np
import pydantic
import pytest
from PIL import Image

from tvmquant.data.preprocess import PRESETS, Preprocess
from tvmquant.errors import DataError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 60, 3), np.uint8)


def test_formula_and_order_of_steps():
    recipe = Preprocess(
        crop=(10, 20), color="BGR", scale=0.5, mean=(1, 2, 3), std=(2, 4, 8), layout="NHWC"
    )
    tensor = recipe.apply(Image.fromarray(PIXELS), "image")
    patch = PIXELS[15:25, 20:40, ::-1].astype(np.float64)
    np.testing.assert_allclose(tensor, (patch * 0.5 - [1, 2, 3]) / [2, 4, 8], rtol=1e-6)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous


def test_layout_nchw_is_the_transpose():
    nhwc = Preprocess(layout="NHWC").apply(PIXELS, "image")
    nchw = Preprocess(layout="NCHW").apply(PIXELS, "image")
    np.testing.assert_array_equal(nchw, nhwc.transpose(2, 0, 1))
    assert nchw.flags.c_contiguous


@pytest.mark.parametrize(("resize", "shape"), [(20, (20, 30)), ((8, 9), (8, 9)), (41, (41, 61))])
def test_resize(resize, shape):
    tensor = Preprocess(resize=resize).apply(Image.fromarray(PIXELS), "image")
    expected = Image.fromarray(PIXELS).resize(shape[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(tensor, np.asarray(expected, np.float32).transpose(2, 0, 1))


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_arrays_and_images_agree(name):
    big = RNG.integers(0, 256, (300, 280, 3), np.uint8)
    expected = PRESETS[name].apply(Image.fromarray(big), "image")
    for array in (big, big.transpose(2, 0, 1)):
        np.testing.assert_array_equal(PRESETS[name].apply(array, "array"), expected)


def test_presets():
    image = Image.fromarray(np.full((256, 256, 3), (10, 20, 30), np.uint8))
    caffe = PRESETS["squeezenet-caffe"].apply(image, "image")
    assert caffe.shape == (3, 227, 227)
    np.testing.assert_array_equal(caffe[:, 0, 0], [30 - 104, 20 - 117, 10 - 123])
    imagenet = PRESETS["imagenet"].apply(image, "image")
    assert imagenet.shape == (3, 224, 224)
    assert imagenet[0, 0, 0] == pytest.approx((10 / 255 - 0.485) / 0.229, rel=1e-6)
    assert PRESETS["none"].apply(image, "image")[2, 5, 5] == 30.0
    assert PRESETS["cifar10"].resize is None


def test_gray():
    gray = Preprocess(color="GRAY", scale=1 / 255)
    assert gray.apply(Image.fromarray(PIXELS), "image").shape == (1, 40, 60)
    for array in (PIXELS[:, :, 0], PIXELS[:, :, :1], PIXELS[None, :, :, 0]):
        np.testing.assert_array_equal(
            gray.apply(array, "array"), PIXELS[None, :, :, 0] * np.float32(1 / 255)
        )
    assert Preprocess(resize=20).apply(PIXELS[:, :, 0], "array").shape == (1, 20, 30)


def test_parse_accepts_every_form(tmp_path):
    recipe = Preprocess(resize=(32, 48), crop=(8, 8), color="BGR", mean=(1.5,), std=(2.0,))
    path = tmp_path / "recipe.json"
    recipe.save(path)
    for spec in (recipe, str(path), path, path.read_text(), json.loads(path.read_text())):
        assert Preprocess.parse(spec) == recipe
    assert Preprocess.parse(None) == Preprocess.parse("none") == Preprocess()
    assert Preprocess.parse("imagenet") is PRESETS["imagenet"]
    assert Preprocess.parse('{"crop": 5, "mean": 3}') == Preprocess(crop=(5, 5), mean=(3.0,))


@pytest.mark.parametrize(
    ("fields", "field", "value"),
    [
        ({"size": 3}, "size", "3"),
        ({"color": "RBG"}, "color", "'RBG'"),
        ({"std": [1, 0, 1]}, "std", r"\[1, 0, 1\]"),
        ({"mean": [1, 2]}, "mean", r"\[1, 2\]"),
        ({"mean": "x"}, "mean", "'x'"),
        ({"crop": 0}, "crop", "0"),
        ({"crop": [3]}, "crop", r"\[3\]"),
        ({"resize": -1}, "resize", "-1"),
        ({"scale": 0}, "scale", "0"),
        ({"scale": float("nan")}, "scale", "nan"),
        ({"layout": "CHW"}, "layout", "'CHW'"),
    ],
)
def test_bad_fields_name_field_and_value(fields, field, value):
    for make in (Preprocess.parse, lambda given: Preprocess(**given)):
        with pytest.raises(DataError, match=rf"{field}.* = .*{value}"):
            make(fields)


@pytest.mark.parametrize("spec", ["imagnet", "{'crop': 3}", "[1]", "/does/not/exist.json", ""])
def test_bad_specs(spec):
    with pytest.raises(DataError, match=r"preset|JSON"):
        Preprocess.parse(spec)


def test_json_file_that_is_no_object(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text("[1, 2]")
    with pytest.raises(DataError, match="recipe"):
        Preprocess.parse(path)


def test_recipe_is_frozen():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        PRESETS["imagenet"].crop = (1, 1)


@pytest.mark.parametrize(
    ("recipe", "array", "message"),
    [
        (Preprocess(crop=(50, 50)), PIXELS, "cat.jpg: .*40x60.*crop 50x50"),
        (Preprocess(), PIXELS[None], r"cat.jpg: .*\(1, 40, 60, 3\)"),
        (Preprocess(), PIXELS[:, :, :2], "cat.jpg: .*no image"),
        (Preprocess(mean=(1, 2, 3)), PIXELS[:, :, :1], "cat.jpg: .*1 channel.*'mean'"),
    ],
)
def test_apply_rejects(recipe, array, message):
    with pytest.raises(DataError, match=message):
        recipe.apply(array, "cat.jpg")
