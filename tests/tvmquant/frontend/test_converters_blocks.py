"""Blocks of pixels become channels and back, as in ONNX Runtime."""

import numpy as np
import pytest
from onnx import helper

from tvmquant.frontend import load_onnx
from tvmquant.simulator import simulate


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(make_model, compare, mode):
    shuffle = helper.make_node("DepthToSpace", ["x"], ["y"], blocksize=2, mode=mode)
    compare(make_model([shuffle], {"x": ("N", 8, 3, 4)}))


def test_space_to_depth(make_model, compare):
    shuffle = helper.make_node("SpaceToDepth", ["x"], ["y"], blocksize=2)
    compare(make_model([shuffle], {"x": ("N", 3, 6, 4)}))


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_one_undoes_the_other(make_model, mode):
    """ONNX Runtime does not know the modes of SpaceToDepth, which came with opset 28."""
    nodes = [
        helper.make_node("SpaceToDepth", ["x"], ["a"], blocksize=2, mode=mode),
        helper.make_node("DepthToSpace", ["a"], ["y"], blocksize=2, mode=mode),
    ]
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 4)).astype(np.float32)
    (found,) = simulate(load_onnx(make_model(nodes, {"x": ("N", 3, 6, 4)}, opset=28)), x)
    np.testing.assert_array_equal(found, x)
