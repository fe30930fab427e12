"""Activations defined by cases equal ONNX Runtime."""

import numpy as np
import pytest
from onnx import helper

from tvmquant.errors import UnsupportedModelError
from tvmquant.frontend import load_onnx

IMAGE = {"x": ("N", 3, 5, 4)}
CASES = {
    "thresholded": ("ThresholdedRelu", {"alpha": 0.3}, 17, None),
    "shrink": ("Shrink", {"lambd": 0.4, "bias": 0.2}, 17, None),
    "hardmax": ("Hardmax", {"axis": 1}, 17, None),
    "hardmax_last": ("Hardmax", {}, 17, None),
    "hardmax_of_the_rest": ("Hardmax", {"axis": 2}, 11, None),
    "upper": ("Trilu", {}, 17, np.int64(1)),
    "lower": ("Trilu", {"upper": 0}, 17, np.int64(-1)),
    "slopes_by_position": ("PRelu", {}, 17, np.linspace(0, 1, 60, dtype="f").reshape(3, 5, 4)),
    "slopes_by_column": ("PRelu", {}, 17, np.linspace(-1, 1, 4, dtype="f")),
}


@pytest.mark.parametrize("case", CASES)
def test_activations(make_model, compare, case):
    kind, attributes, opset, second = CASES[case]
    names = ["x"] if second is None else ["x", "c"]
    node = helper.make_node(kind, names, ["y"], **attributes)
    constants = {} if second is None else {"c": second}
    compare(make_model([node], IMAGE, constants=constants, opset=opset))


REJECTED = {
    "jumps": ("Mod", np.float32(0.7)),
    r"slope has shape \(2, 5, 4\)|do not broadcast": ("PRelu", np.ones((2, 5, 4), "f")),
}


@pytest.mark.parametrize("reason", REJECTED)
def test_rejected_by_name(make_model, reason):
    kind, second = REJECTED[reason]
    node = helper.make_node(kind, ["x", "c"], ["y"], "op")
    with pytest.raises(UnsupportedModelError, match=rf"op \({kind}\): .*({reason})"):
        load_onnx(make_model([node], IMAGE, constants={"c": second}))
