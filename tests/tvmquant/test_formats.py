"""Packing, rounding and names of every width."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tvmquant import formats
from tvmquant.errors import QuantizationError
from tvmquant.formats import BINARY, GROUP_SIZES, INT16, UBINARY, WIDTHS, Uniform

EVERY = [Uniform(bits, signed) for bits in WIDTHS for signed in (True, False)] + [INT16]
GROUPED = [Uniform(bits, True, size) for bits in (2, 3, 4) for size in GROUP_SIZES]
SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=9)


def integers(held, shape):
    return arrays.arrays(held.container, shape, elements=st.integers(held.qmin, held.qmax))


@pytest.mark.parametrize("held", [*EVERY, *GROUPED, BINARY, UBINARY], ids=str)
def test_names_round_trip(held):
    assert formats.parse(held.name) == held
    assert str(held) == held.name


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("int2", (2, -1, 1, "int8", 0)),
        ("int3", (3, -3, 3, "int8", 0)),
        ("int4g32", (4, -7, 7, "int8", 32)),
        ("int8", (8, -127, 127, "int8", 0)),
        ("uint2", (2, 0, 3, "uint8", 0)),
        ("uint8", (8, 0, 255, "uint8", 0)),
        ("int16", (16, -32767, 32767, "int16", 0)),
        ("binary", (1, -1, 1, "int8", 0)),
        ("ubinary", (1, 127, 129, "uint8", 0)),
    ],
)
def test_levels_and_containers(name, facts):
    held = formats.parse(name)
    assert (held.bits, held.qmin, held.qmax, held.container, held.group) == facts


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int1", "int1: expected 2 to 8 bits"),
        ("uint9", "uint9: expected 2 to 8 bits"),
        ("uint16", "uint16: expected 2 to 8 bits"),
        ("int4g7", "int4g7: groups hold 32, 64 or 128 weights"),
        ("uint4g32", "uint4g32: groups hold"),
        ("int5g32", "int5g32: .* multiplier of up to 16 leave 8 bits"),
        ("w4a8", "'w4a8'; expected a form such as int4"),
        ("int4 ", "expected a form"),
    ],
)
def test_what_is_no_format(name, message):
    with pytest.raises(QuantizationError, match=message):
        formats.parse(name)


@pytest.mark.parametrize("held", EVERY, ids=str)
@given(data=st.data())
@settings(max_examples=20)
def test_packing_is_dense_and_exact(held, data):
    shape = data.draw(SHAPES)
    tensor = data.draw(integers(held, shape))
    packed = held.pack(tensor)
    assert packed.dtype == np.uint8
    assert packed.shape == (held.bytes(tensor.size),) == (math.ceil(tensor.size * held.bits / 8),)
    unpacked = held.unpack(packed, shape)
    assert unpacked.dtype == held.container
    np.testing.assert_array_equal(unpacked, tensor)


@pytest.mark.parametrize("held", EVERY, ids=str)
@given(data=st.data())
@settings(max_examples=20)
def test_bits_lie_where_the_module_says(held, data):
    tensor = data.draw(integers(held, data.draw(st.integers(1, 30))))
    stream = int.from_bytes(held.pack(tensor).tobytes(), "little")
    offset = 1 << (held.bits - 1) if held.signed else 0
    mask = (1 << held.bits) - 1
    found = [(stream >> i * held.bits & mask) - offset for i in range(tensor.size)]
    assert found == tensor.tolist()
    assert stream >> tensor.size * held.bits == 0


@pytest.mark.parametrize("held", EVERY, ids=str)
@given(data=st.data())
@settings(max_examples=20)
def test_every_byte_string_unpacks_to_what_packs_to_it(held, data):
    count = 8 * data.draw(st.integers(0, 6))
    length = count * held.bits // 8
    drawn = data.draw(st.binary(min_size=length, max_size=length))
    packed = np.frombuffer(drawn, np.uint8)
    np.testing.assert_array_equal(held.pack(held.unpack(packed, (count,))), packed)


@pytest.mark.parametrize("held", EVERY, ids=str)
def test_what_does_not_fit_is_refused(held):
    held.pack(np.array([held.qmin, held.qmax]))
    for wrong in (held.qmax + 1, held.qmin - 2):
        with pytest.raises(QuantizationError, match=f"do not fit the format {held}"):
            held.pack(np.array([0, wrong]))
    with pytest.raises(QuantizationError, match=f"1 bytes hold no tensor .* format {held}"):
        held.unpack(np.zeros(1, np.uint8), (9,))


@pytest.mark.parametrize("held", EVERY, ids=str)
@given(data=st.data())
@settings(max_examples=20)
def test_rounding_takes_the_nearest_level_and_ties_the_even_one(held, data):
    halves = st.integers(-(2**17), 2**17).map(lambda n: n / 2)
    steps = np.array(data.draw(st.lists(st.floats(-1e5, 1e5) | halves, min_size=1)))
    rounded = held.round(steps)
    assert rounded.dtype == held.container
    assert (rounded >= held.qmin).all()
    assert (rounded <= held.qmax).all()
    inside = np.clip(steps, held.qmin, held.qmax)
    error = np.abs(rounded - inside)
    assert error.max() <= 0.5
    assert (rounded[error == 0.5] % 2 == 0).all()


@given(st.integers(0, 10**6), st.sampled_from(GROUPED))
def test_groups_take_a_byte_each(count, held):
    plain = Uniform(held.bits, signed=True)
    assert held.bytes(count) == plain.bytes(count) + math.ceil(count / held.group)


@pytest.mark.parametrize("held", [BINARY, UBINARY], ids=str)
@pytest.mark.parametrize("shape", [(0,), (1,), (8,), (3, 7), (2, 3, 3, 5)])
def test_one_bit_packs_eight_in_a_byte(held, shape):
    rng = np.random.default_rng(0)
    levels = rng.choice([held.qmin, held.qmax], shape).astype(held.container)
    packed = held.pack(levels)
    assert packed.size == held.bytes(levels.size) == -(-levels.size // 8)
    found = held.unpack(packed, shape)
    assert found.dtype == held.container
    np.testing.assert_array_equal(found, levels)


@pytest.mark.parametrize("held", [BINARY, UBINARY], ids=str)
def test_one_bit_holds_no_zero(held):
    steps = np.asarray([-3.0, -0.01, 0.0, 0.4, 9.0]) + held.middle
    low, high = held.qmin, held.qmax
    np.testing.assert_array_equal(held.round(steps), [low, low, high, high, high])
    with pytest.raises(QuantizationError, match=f"format {held}, which holds {low} and {high}"):
        held.pack(np.asarray([low, held.middle]))
    with pytest.raises(QuantizationError, match="hold no tensor of shape"):
        held.unpack(np.zeros(2, np.uint8), (3,))
