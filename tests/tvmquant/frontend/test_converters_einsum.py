"""Einsum equals ONNX Runtime, as products of matrices."""

import numpy as np
import pytest
from onnx import helper

from tvmquant.errors import UnsupportedModelError
from tvmquant.frontend import load_onnx

# equation -> shapes of the inputs, the first of which is data, and those of the constants
EQUATIONS = {
    "bihd,bjhd->bhij": ({"x": ("N", 5, 2, 3), "z": ("N", 4, 2, 3)}, {}),
    "bij,bjk->bik": ({"x": ("N", 5, 3), "z": ("N", 3, 4)}, {}),
    "bij , bij -> bi": ({"x": ("N", 5, 3), "z": ("N", 5, 3)}, {}),
    "bij,bij->bij": ({"x": ("N", 5, 3), "z": ("N", 5, 3)}, {}),
    "bi,bj->bji": ({"x": ("N", 5), "z": ("N", 3)}, {}),
    "bnd,dhk->bnhk": ({"x": ("N", 5, 4)}, {"c": (4, 2, 3)}),
    "dhk,bnd->bnhk": ({"x": ("N", 5, 4)}, {"c": (4, 2, 3)}),
    "bnhk,dhk->bnd": ({"x": ("N", 5, 2, 3)}, {"c": (4, 2, 3)}),
    "b...d,de->b...e": ({"x": ("N", 5, 2, 4)}, {"c": (4, 3)}),
    "...ij,jk": ({"x": ("N", 5, 3)}, {"c": (3, 4)}),
    "bij->bji": ({"x": ("N", 5, 3)}, {}),
    "bij->bj": ({"x": ("N", 5, 3)}, {}),
    "bij,jk,bkl->bil": ({"x": ("N", 5, 3), "z": ("N", 4, 2)}, {"c": (3, 4)}),
    "bij,k->bk": ({"x": ("N", 5, 3)}, {"c": (4,)}),
    "bcij,ijk->bck": ({"x": ("N", 2, 5, 3)}, {"c": (5, 3, 4)}),
}
# where the operands stand in another order than above
ORDER = {"dhk,bnd->bnhk": ["c", "x"], "bij,jk,bkl->bil": ["x", "c", "z"]}


def einsum(make_model, equation, inputs, constants):
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(s).astype(np.float32) for name, s in constants.items()}
    names = ORDER.get(equation, [*inputs, *constants])
    node = helper.make_node("Einsum", names, ["y"], "einsum", equation=equation)
    return make_model([node], inputs, constants=arrays)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum(make_model, compare, equation):
    compare(einsum(make_model, equation, *EQUATIONS[equation]))


@pytest.mark.parametrize("equation", ["bnd,dhk->bnhk", "dhk,bnd->bnhk", "b...d,de->b...e"])
def test_a_constant_operand_is_the_weight_of_a_dense_layer(make_model, operators, equation):
    found = operators(load_onnx(einsum(make_model, equation, *EQUATIONS[equation])))
    assert [name for name in found if name != "reshape"] == ["matmul"]


REJECTED = {
    "bii->bi": "takes a diagonal",
    "bij,bjk->bik": "has not 1 operands",
    "bi->bi": "does not fit 3 axes",
    "bij->bik": "has no such result",
    "bij->bb": "has no such result",
}


@pytest.mark.parametrize("equation", REJECTED)
def test_other_equations_are_rejected(make_model, equation):
    model = einsum(make_model, equation, {"x": ("N", 3, 3)}, {})
    with pytest.raises(UnsupportedModelError, match=rf"einsum \(Einsum\): .*{REJECTED[equation]}"):
        load_onnx(model)


def test_extents_that_differ_are_rejected(make_model):
    model = einsum(make_model, "bij,jk->bik", {"x": ("N", 5, 3)}, {"c": (4, 2)})
    with pytest.raises(UnsupportedModelError, match=r"\(N, 5, 3\), \(4, 2\), which its equation"):
        load_onnx(model)
