import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tvmquant.errors import QuantizationError
from tvmquant.simulator import accumulate, calls


@st.composite
def convolutions(draw, transposed=False):
    """Operands and attributes of a small convolution of any kind."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inputs = draw(st.integers(1, 3))
    outputs = draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 3)) for _ in range(2)]
    strides = [draw(st.integers(1, 3)) for _ in range(2)]
    dilation = [draw(st.integers(1, 2)) for _ in range(2)]
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    size = [draw(st.integers(r + 1, r + 5)) for r in reach]
    # beyond this a transposed convolution would have no output
    limit = [r // 2 if transposed else 3 for r in reach] * 2
    padding = [draw(st.integers(0, most)) for most in limit]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.integers(0, 256, (draw(st.integers(1, 3)), groups * inputs, *size)).astype(np.uint8)
    weight = rng.integers(-127, 128, (groups * outputs, inputs, *kernel)).astype(np.int8)
    bias = rng.integers(-(2**20), 2**20, groups * outputs).astype(np.int32)
    attrs = {
        "strides": strides,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "pad_value": draw(st.integers(0, 255)),
        "layer": "conv",
    }
    return x, weight, bias, attrs


@given(convolutions())
def test_conv2d_equals_torch_float64(case):
    x, weight, bias, attrs = case
    top, left, bottom, right = attrs["padding"]
    padded = torch.nn.functional.pad(
        torch.tensor(x, dtype=torch.float64), (left, right, top, bottom), value=attrs["pad_value"]
    )
    expected = torch.nn.functional.conv2d(
        padded,
        torch.tensor(weight, dtype=torch.float64),
        torch.tensor(bias, dtype=torch.float64),
        attrs["strides"],
        0,
        attrs["dilation"],
        attrs["groups"],
    )
    result = accumulate.conv2d(x, weight, bias, **attrs)
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result, expected.numpy())


@given(convolutions(transposed=True), st.integers(0, 1), st.integers(0, 1))
def test_conv2d_transpose_equals_torch_float64(case, extra_h, extra_w):
    x, weight, bias, attrs = case
    zero = attrs["pad_value"]
    output_padding = [
        min(extra, max(s, d) - 1)
        for extra, s, d in zip((extra_h, extra_w), attrs["strides"], attrs["dilation"], strict=True)
    ]
    groups = attrs["groups"]
    outputs, inputs = weight.shape[:2]
    # (O, I / groups, ...) -> (I, O / groups, ...), the order of torch and ONNX
    theirs = weight.reshape(groups, outputs // groups, inputs, *weight.shape[2:])
    theirs = theirs.swapaxes(1, 2).reshape(groups * inputs, outputs // groups, *weight.shape[2:])
    # what remains after the zero point is folded: bias + zero * sum(w) + sum((x - zero) * w)
    folded = bias + zero * weight.astype(np.int64).sum(axis=(1, 2, 3))
    whole = torch.nn.functional.conv_transpose2d(
        torch.tensor(x, dtype=torch.float64) - zero,
        torch.tensor(theirs, dtype=torch.float64),
        torch.tensor(folded, dtype=torch.float64),
        attrs["strides"],
        0,
        output_padding,
        groups,
        attrs["dilation"],
    ).numpy()
    top, left, bottom, right = attrs["padding"]
    expected = whole[:, :, top : whole.shape[2] - bottom, left : whole.shape[3] - right]
    result = accumulate.conv2d_transpose(x, weight, bias, output_padding=output_padding, **attrs)
    np.testing.assert_array_equal(result, expected)


def test_conv2d_equals_nested_loops():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (1, 4, 5, 4))
    weight = rng.integers(-127, 128, (2, 2, 3, 2))
    bias = np.array([7, -9])
    expected = np.zeros((1, 2, 3, 3), np.int64)
    for o, y, z in itertools.product(range(2), range(3), range(3)):
        total = int(bias[o])
        for i, ky, kx in itertools.product(range(2), range(3), range(2)):
            row, column = 2 * y + ky - 1, 2 * z + 2 * kx - 1
            inside = 0 <= row < 5 and 0 <= column < 4
            value = int(x[0, 2 * o + i, row, column]) if inside else 99
            total += value * int(weight[o, i, ky, kx])
        expected[0, o, y, z] = total
    result = accumulate.conv2d(
        x, weight, bias, strides=(2, 2), padding=(1, 1, 1, 3), dilation=(1, 2), groups=2,
        pad_value=99, layer="conv",
    )  # fmt: skip
    np.testing.assert_array_equal(result, expected)


def test_batches_are_sliced_without_changing_the_result(monkeypatch):
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (5, 4, 6, 6)).astype(np.uint8)
    attrs = {"strides": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1,
             "pad_value": 3, "layer": "conv"}  # fmt: skip
    weight, bias = rng.integers(-9, 9, (3, 4, 3, 3)), np.zeros(3, np.int32)
    whole = accumulate.conv2d(x, weight, bias, **attrs)
    monkeypatch.setattr(calls, "SCRATCH_BYTES", 1)
    np.testing.assert_array_equal(accumulate.conv2d(x, weight, bias, **attrs), whole)


def test_float64_takes_over_where_float32_would_round():
    x = np.full((1, 70000), 255, np.uint8)
    weight = np.full((1, 70000), 1, np.int8)
    weight[0, -1] = 2
    x[0, 0] = 254
    result = accumulate.dense(x, weight, np.array([1]), "fc")
    assert int(result[0, 0]) == 255 * 70001 - 1 + 1


def test_an_accumulator_beyond_int32_names_the_layer():
    x = np.full((1, 2**17), 255, np.uint8)
    weight = np.full((1, 2**17), 127, np.int8)
    with pytest.raises(QuantizationError, match="layer fc: the accumulator reaches"):
        accumulate.dense(x, weight, np.array([0]), "fc")


def test_the_bias_counts_towards_the_accumulator():
    one = np.ones((1, 1), np.uint8)
    accumulate.dense(one, one, np.array([2**31 - 2]), "fc")
    with pytest.raises(QuantizationError, match="leaves int32"):
        accumulate.dense(one, one, np.array([2**31 - 1]), "fc")


def test_operands_too_wide_for_exact_sums_are_refused():
    x = np.full((1, 4), 2**26, np.int64)
    with pytest.raises(QuantizationError, match=r"layer fc: .* cannot be simulated exactly"):
        accumulate.dense(x, x, np.array([0]), "fc")
