"""Elements that indices choose are those of ONNX Runtime."""

import numpy as np
import pytest
from onnx import helper

IMAGE = {"x": ("N", 3, 6, 4)}

GATHERED = {
    "one": (1, np.int64(-1)),
    "range": (2, np.array([1, 2, 3])),
    "any": (2, np.array([[1, -2], [5, 3]])),
}


@pytest.mark.parametrize("case", GATHERED)
def test_gather(make_model, compare, case):
    axis, indices = GATHERED[case]
    node = helper.make_node("Gather", ["x", "c"], ["y"], axis=axis)
    compare(make_model([node], IMAGE, constants={"c": indices}))
