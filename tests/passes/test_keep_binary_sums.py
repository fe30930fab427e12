"""Sums of binary layers are rounded once."""

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.graphs import calls, check, const, graph, normal, quantize, run_twin
from tvmquant.formats import INT32
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.imported_quantizers import imported_sign, imported_weight
from tvmquant.passes.insert_requantize import InsertRequantize
from tvmquant.passes.keep_binary_sums import KeepBinarySums
from tvmquant.simulator import simulate

op, nn = relax.op, relax.op.nn
SHAPE = (2, 4, 5, 5)
RNG = np.random.default_rng(0)
COUNT = 4
SIGNS = RNG.choice([-1, 1], (COUNT, 6, 4, 3, 3))
SCALES = RNG.uniform(0.1, 1.0, (COUNT, 6)).astype(np.float32)
BIAS = normal(6, 1, 1)


def signs(emit, x, scale=1.0):
    return emit(imported_sign(x, scale, name="signs"))


def layer(emit, b, index):
    name = f"conv{index}"
    held = imported_weight(
        SIGNS[index], SCALES[index], np.zeros(6, np.int64), axis=0, groups=1, name=name
    )
    return emit(nn.conv2d(b, emit(held), padding=1), name)


def added(emit, *tensors):
    total = tensors[0]
    for tensor in tensors[1:]:
        total = emit(op.add(total, tensor))
    return total


def chain(emit, x):
    b = signs(emit, x)
    return added(emit, *(layer(emit, b, i) for i in range(3)))


def tree(emit, x):
    b = signs(emit, x, scale=0.5)
    first, second, third, last = (layer(emit, b, i) for i in range(4))
    return added(emit, added(emit, first, second), added(emit, third, last))


def scaled(emit, x):
    b = signs(emit, x)
    half = const(np.float32(-0.5))
    inner = added(emit, emit(op.add(layer(emit, b, 0), const(BIAS))), layer(emit, b, 1))
    return added(emit, emit(op.multiply(inner, half)), layer(emit, b, 2), const(BIAS))


def with_shortcut(emit, x):
    b = signs(emit, x)
    other = emit(nn.conv2d(x, const(normal(6, 4, 1, 1))), "real")
    return added(emit, layer(emit, b, 0), other, layer(emit, b, 1))


def of_two_inputs(emit, x):
    b = signs(emit, x)
    other = emit(imported_sign(emit(op.add(x, const(np.float32(0.3)))), 0.25, name="others"))
    return added(emit, layer(emit, b, 0), layer(emit, other, 1))


def padded(emit, x):
    b = emit(nn.pad(signs(emit, x), (0, 0, 0, 0, 1, 1, 1, 1), "constant", 1.0))
    return added(emit, layer(emit, b, 0), layer(emit, b, 1))


FORMS = [padded, chain, tree, scaled, with_shortcut, of_two_inputs]


def kept(body):
    module = graph(body, SHAPE)
    found = KeepBinarySums()(module)
    relax.analysis.well_formed(found)  # raises
    tvm.ir.assert_structural_equal(KeepBinarySums()(found), found)
    return module, found


def sums(module):
    return [c for c in calls(module, qop.FAKE_QUANT) if c.attrs["format"] == INT32.name]


def test_what_becomes_of_two_layers():
    def body(emit, x):
        b = signs(emit, x)
        return added(emit, emit(op.add(layer(emit, b, 0), const(BIAS))), layer(emit, b, 1))

    _, found = kept(body)
    (held,) = sums(found)
    assert int(held.attrs["qmax"]) == 4 * 9
    np.testing.assert_array_equal(qop.constant_array(held.args[1]), SCALES[0])
    names = [str(c.op.name) for c in calls(found, "relax.add")]
    assert names == ["relax.add"] * 2  # of the layers, and of the constant


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_the_network_stays_the_same(form):
    module, found = kept(form)
    assert len(sums(found)) >= 1
    x = normal(*SHAPE)
    np.testing.assert_allclose(
        run_twin(found, [x])[0], run_twin(module, [x])[0], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_sums_are_rounded_once(form):
    """To 8 bits, and to signs."""
    _, found = kept(form)
    check(found, normal(*SHAPE), steps=1.0 if form is with_shortcut else 0.51)


def test_signs_of_a_sum_are_those_of_real_numbers():
    def body(emit, x):
        b = signs(emit, x)
        total = added(emit, *(layer(emit, b, i) for i in range(3)), const(BIAS))
        return emit(imported_sign(total, 1.0, name="result"))

    _, found = kept(body)
    x = normal(64, *SHAPE[1:])
    module = graph(body, (64, *SHAPE[1:]))
    found = KeepBinarySums()(module)
    integer = InsertRequantize()(quantize(found, [x]).calibrated)
    (expected,) = run_twin(module, [x])
    (got,) = simulate(integer, x)
    np.testing.assert_array_equal(got, expected)


def layer_of_reals(emit, x):
    return emit(nn.conv2d(x, const(normal(6, 4, 3, 3)), padding=1), "real")


def one_layer(emit, x):
    return added(emit, layer(emit, signs(emit, x), 0), layer_of_reals(emit, x))


def read_twice(emit, x):
    b = signs(emit, x)
    first = layer(emit, b, 0)
    return added(emit, first, layer(emit, b, 1), emit(nn.relu(first)))


def of_bytes(emit, x):
    return added(emit, layer_of_reals(emit, x), layer_of_reals(emit, x))


@pytest.mark.parametrize("form", [one_layer, read_twice, of_bytes])
def test_what_is_no_sum_of_binary_layers(form):
    module, found = kept(form)
    tvm.ir.assert_structural_equal(found, module)
