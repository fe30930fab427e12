"""Constants that leave the virtual machine's executable: which, how often, and where they go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax, tirx

from tvmquant.formats import Uniform, pack_widths, parse
from tvmquant.ir import quantized_ops as qop
from tvmquant.passes.store_weights import (
    CHANNELS,
    FORMATS,
    LEAST_BYTES,
    LEAST_SAVED,
    WEIGHTS,
    StoreWeights,
    container_bits,
    digest,
    values_of,
)

LARGE = np.arange(LEAST_BYTES, dtype=np.uint8).view(np.int8).reshape(64, -1)
SMALL = LARGE[:, :-1].copy()
MASK = np.ones((64, LEAST_BYTES // 64), bool)
X = relax.TensorType((8, 8), "uint8")


def kernel(*types: relax.TensorType) -> tirx.PrimFunc:
    """Return a kernel that ignores all operands but the first."""
    buffers = [tirx.decl_buffer(t.shape.values, t.dtype.dtype) for t in types]
    return tirx.PrimFunc(buffers, tirx.Evaluate(0)).with_attr("s_tir", True)


def module(*calls: list[Any], stored: list[Any] | None = None) -> tvm.IRModule:
    """Return ``main(x)`` that calls a kernel per list of constants.

    An integer among them is a stored weight: ``stored`` holds the types by index.
    """
    builder = relax.BlockBuilder()
    x = relax.Var("x", X)
    with builder.function("main", [x]):
        with builder.dataflow():
            y = x
            for i, constants in enumerate(calls):
                operands: list[Any] = [y]
                for constant in constants:
                    if isinstance(constant, int):
                        index = tirx.IntImm("int64", constant)
                        ty = qop.constant((stored or [])[constant]).ty
                        call = relax.op.call_pure_packed("tvmquant_weight", index, ty_args=ty)
                        operands.append(builder.emit(call))
                    else:
                        operands.append(qop.constant(constant))
                function = builder.add_func(kernel(*[o.ty for o in operands], X), f"kernel{i}")
                y = builder.emit(relax.op.call_tir(function, operands, out_ty=X))
            result = builder.emit_output(y)
        builder.emit_func_output(result)
    return builder.finalize()


def test_large_constants_are_stored_once_and_small_ones_stay() -> None:
    before = module([LARGE, SMALL], [LARGE + 1], [LARGE.copy()])
    after = StoreWeights()(before)
    weights = [found["data"].numpy() for found in after.attrs[WEIGHTS]]
    np.testing.assert_array_equal(weights, [LARGE, LARGE + 1])
    expected = module([0, SMALL], [1], [0], stored=weights)
    tvm.ir.assert_structural_equal(after.without_attr(WEIGHTS), expected)


def test_equal_bytes_of_other_types_are_other_weights() -> None:
    after = StoreWeights()(module([LARGE], [LARGE.view(np.uint8)], [LARGE.reshape(-1)]))
    assert [str(found["dtype"]) for found in after.attrs[WEIGHTS]] == ["int8", "uint8", "int8"]


def test_without_large_constants_nothing_changes() -> None:
    before = module([SMALL, MASK])
    tvm.ir.assert_structural_equal(StoreWeights()(before), before)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("container", ["nibbles", "int8", "int16"])
def test_weights_are_held_at_their_own_width(bits: int, container: str) -> None:
    held = Uniform(bits, signed=True)
    values = np.resize(np.arange(held.qmin, held.qmax + 1), 2048)
    kept = values.astype("int8" if container == "nibbles" else container)
    if container == "nibbles":
        halves = (np.clip(values, -8, 7) + 8).astype(np.uint8).reshape(-1, 2)
        kept, values = halves[:, 0] | halves[:, 1] << 4, np.clip(values, -8, 7)
    np.testing.assert_array_equal(values_of(kept, held), values)
    before = module([kept]).with_attr(FORMATS, {digest(kept): held.name})
    after = StoreWeights()(before)
    narrow = bits < container_bits(kept, held)
    if not narrow:
        tvm.ir.assert_structural_equal(after, before)  # 4096 bytes at most
        return
    (found,) = after.attrs[WEIGHTS]
    assert (str(found["format"]), str(found["dtype"])) == (held.name, str(kept.dtype))
    assert [int(extent) for extent in found["shape"]] == list(kept.shape)
    np.testing.assert_array_equal(found["data"].numpy(), held.pack(values))


def test_unsigned_values_lie_one_in_a_byte() -> None:
    held = Uniform(4, signed=False)
    kept = np.resize(np.arange(16), (64, 64)).astype(np.uint8)
    (found,) = StoreWeights()(module([kept]).with_attr(FORMATS, {digest(kept): held.name})).attrs[
        WEIGHTS
    ]
    assert (str(found["format"]), int(found["width"])) == ("uint4", 8)
    np.testing.assert_array_equal(found["data"].numpy(), held.pack(kept))


@pytest.mark.parametrize("zeros", [False, True])
def test_one_bit_is_kept_where_there_are_no_zeros(zeros: bool) -> None:
    values = np.resize([1, -1, -1], 4096).astype(np.int8)
    values[:8] *= not zeros
    (found,) = StoreWeights()(
        module([values]).with_attr(FORMATS, {digest(values): "binary"})
    ).attrs[WEIGHTS]
    assert str(found["format"]) == ("int2" if zeros else "binary")
    np.testing.assert_array_equal(parse(str(found["format"])).pack(values), found["data"].numpy())


def test_what_packing_hardly_makes_smaller_stays() -> None:
    held = Uniform(6, signed=True)
    few = np.zeros(4 * LEAST_SAVED - 4, np.int8)
    before = module([few]).with_attr(FORMATS, {digest(few): held.name})
    tvm.ir.assert_structural_equal(StoreWeights()(before), before)
    enough = np.zeros(4 * LEAST_SAVED, np.int8)
    before = module([enough]).with_attr(FORMATS, {digest(enough): held.name})
    assert len(StoreWeights()(before).attrs[WEIGHTS]) == 1


@pytest.mark.parametrize("container", ["nibbles", "int8"])
def test_channels_are_held_at_their_own_widths(container: str) -> None:
    random = np.random.default_rng(0)
    widths = random.permutation(np.resize([2, 3, 4, 2], 32))
    bits = np.broadcast_to(widths.reshape(2, 1, 16, 1), (2, 9, 16, 8))
    values = np.rint(random.uniform(-1, 1, bits.shape) * (2 ** (bits - 1) - 1)).astype(np.int8)
    values[:, 0, :, 0] = (2 ** (bits - 1) - 1)[:, 0, :, 0]
    kept = values
    if container == "nibbles":
        halves = (values + 8).astype(np.uint8).reshape(2, 9, 16, 4, 2)
        kept = halves[..., 0] | halves[..., 1] << 4
    before = module([kept]).with_attr(CHANNELS, {digest(kept): (0, 2)})
    (found,) = StoreWeights()(before).attrs[WEIGHTS]
    assert [int(bits) for bits in found["widths"]] == widths.tolist()
    assert [int(extent) for extent in found["runs"]] == [8, 16, 9]
    assert int(found["width"]) == (4 if container == "nibbles" else 8)
    np.testing.assert_array_equal(found["data"].numpy(), pack_widths(values, bits))


def test_channels_of_one_width_are_not_copied() -> None:
    kept = np.resize(np.arange(-128, 128), (4, 64, 16, 4)).astype(np.int8)
    kept[0, :, 0] = 0
    before = module([kept]).with_attr(CHANNELS, {digest(kept): (0, 2)})
    (found,) = StoreWeights()(before).attrs[WEIGHTS]
    assert "widths" not in found
