"""Padding of sliding windows against brute force."""

import itertools

import pytest
from onnx import helper

from tvmquant.frontend.dimensions import UnsupportedNodeError
from tvmquant.frontend.node import Node
from tvmquant.frontend.windows import Window, output_extent, pad_for_ceil, read_window


def node(**attributes):
    return Node(helper.make_node("MaxPool", ["x"], ["y"], **attributes), "pool", 17)


def starts(window, size, ceil):
    """Start positions of all windows along the first axis, in padded coordinates."""
    end = size + window.pads[0] + window.pads[2]
    found = []
    for start in range(0, end, window.strides[0]):
        fits = start + window.reach(0) <= end
        hangs_over = ceil and found and not fits and start < size + window.pads[0]
        # one window more than fits, no further ones
        if fits or (hangs_over and found[-1] + window.reach(0) < end):
            found.append(start)
    return found


# (size, kernel, stride, pad)
SIZES = [
    case
    for case in itertools.product(range(4, 10), (1, 2, 3), (1, 2, 3), (0, 1, 2))
    if case[3] < case[1]
]


@pytest.mark.parametrize("ceil", [False, True])
def test_number_of_windows(ceil):
    for size, kernel, stride, pad in SIZES:
        window = Window((kernel, 1), (stride, 1), (1, 1), (pad, 0, pad, 0))
        expected = len(starts(window, size, ceil))
        assert output_extent(window, (size, 1), 0, ceil=ceil) == expected, (size, kernel, stride)


def test_padding_for_ceil_gives_as_many_windows_when_rounding_down():
    for size, kernel, stride, pad in SIZES:
        window = Window((kernel, 1), (stride, 1), (1, 1), (pad, 0, pad, 0))
        extended = pad_for_ceil(window, (size, 1))
        expected = output_extent(window, (size, 1), 0, ceil=True)
        assert output_extent(extended, (size, 1), 0, ceil=False) == expected
        assert extended.pads[:2] == window.pads[:2]


def test_same_padding_puts_the_odd_element_last_or_first():
    upper = read_window(node(auto_pad="SAME_UPPER", strides=[2, 2]), (3, 4), (8, 8))
    lower = read_window(node(auto_pad="SAME_LOWER", strides=[2, 2]), (3, 4), (8, 8))
    assert upper.pads == (0, 1, 1, 1)
    assert lower.pads == (1, 1, 0, 1)


@pytest.mark.parametrize(
    "attributes", [{"pads": [0, -1, 0, 0]}, {"strides": [0, 1]}, {"dilations": [1]}]
)
def test_impossible_windows(attributes):
    with pytest.raises(UnsupportedNodeError):
        read_window(node(**attributes), (3, 3), (8, 8))


def test_window_larger_than_its_input():
    window = Window((5, 1), (1, 1), (1, 1), (0, 0, 0, 0))
    with pytest.raises(UnsupportedNodeError, match="larger than its padded input"):
        output_extent(window, (4, 1), 0, ceil=False)
