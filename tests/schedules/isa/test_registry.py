"""An instruction set that a processor does not have, made of plain code and registered here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tvm import tirx
from tvm.script import tirx as T  # noqa: N812

from tests.schedules.conv2d_cases import LAYERS, case
from tests.schedules.kernel_testing import NATIVE, make_target, run
from tvmquant.errors import TargetError
from tvmquant.machine import Machine
from tvmquant.schedules import conv2d, conv2d_transpose, depthwise_conv2d, elementwise, isa
from tvmquant.schedules.isa import (
    ByteLookup,
    DotProduct,
    InstructionSet,
    IssueCost,
    Level,
    Stage,
)
from tvmquant.schedules.kernel_facts import name_of

# bytes by bytes, two a lane, into four lanes
TOY = DotProduct("toy", 4, 2, "uint8", "int8", 12, IssueCost(0.5, 1, 2, 0.5, 4.0, scratch=2))


def implementation(dot: DotProduct) -> tirx.PrimFunc:
    """Multiply the even products of all lanes, then the odd ones."""
    lanes = dot.lanes

    def product(a: Any, b: Any, k: int) -> Any:
        weights = T.cast(T.Shuffle([b], [2 * i + k for i in range(lanes)]), f"int32x{lanes}")
        return T.broadcast(T.cast(a, "int32"), lanes) * weights

    @T.prim_func(s_tir=True)
    def instructions(
        A: T.Buffer((2,), "uint8", offset_factor=1),
        B: T.Buffer((lanes, 2), "int8", offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:2], B[0:lanes, 0:2])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = (
                C.vload([0], dtype=f"int32x{lanes}")
                + product(A[0], B.vload([0, 0], dtype=f"int8x{2 * lanes}"), 0)
                + product(A[1], B.vload([0, 0], dtype=f"int8x{2 * lanes}"), 1)
            )

    return instructions


@pytest.fixture
def toy() -> Iterator[InstructionSet]:
    """Every processor of this machine's architecture has it."""
    architecture = isa.architecture(make_target(NATIVE))
    instructions = InstructionSet(
        "toy", (architecture,), (Level((), (TOY,)),), {Stage.DOT: implementation}
    )
    isa.register(instructions)
    yield instructions
    isa.unregister(instructions)


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("w_bits", [8, 4])
@pytest.mark.parametrize("name", ["3x3", "stem", "pointwise", "grouped", "odd groups", "dense"])
def test_a_registered_instruction_set_computes_convolutions(name: str, w_bits: int) -> None:
    target = make_target(NATIVE)
    spec = replace(LAYERS[name].flattened(), w_bits=w_bits)
    tiling = conv2d.target_tiling(spec, Machine.of(target, 2))
    # three inputs and six outputs of a group suit no vector
    assert (tiling.dot == TOY) == (name != "odd groups")
    inputs, expected = case(spec, tiling)
    np.testing.assert_array_equal(run(conv2d.kernel(spec, tiling), target, inputs), expected)


@pytest.mark.usefixtures("toy")
def test_groups_of_weights_need_no_intrinsic_of_their_own() -> None:
    target = make_target(NATIVE)
    spec = replace(LAYERS["3x3"], w_bits=4, w_group=32)
    tiling = conv2d.target_tiling(spec, Machine.of(target, 1))
    assert (tiling.dot, tiling.unpack) == (TOY, "block")
    inputs, expected = case(spec, tiling)
    np.testing.assert_array_equal(run(conv2d.kernel(spec, tiling), target, inputs), expected)


@pytest.mark.usefixtures("toy")
def test_kernels_do_without_a_stage_that_is_missing() -> None:
    target = make_target(NATIVE)
    window = depthwise_conv2d.DepthwiseConv2DSpec(1, 8, 8, 16)
    assert depthwise_conv2d.default_tiling(window, Machine.of(target, 1)).dot.name == "generic"
    transposed = conv2d_transpose.Conv2DTransposeSpec(1, 4, 4, 8, 16)
    assert conv2d_transpose.default_tiling(transposed, Machine.of(target, 1)).dot == TOY
    with pytest.raises(TargetError, match="no registered instruction set has 'chain' of 'toy'"):
        isa.intrinsic(TOY, Stage.CHAIN)


def test_sets_are_taken_back(toy: InstructionSet) -> None:
    target = make_target(NATIVE)
    assert isa.dot_products(target)[0] == TOY
    isa.unregister(toy)
    assert TOY not in isa.dot_products(target)
    assert not isa.offers(TOY, Stage.DOT)
    isa.register(toy)


def one_by_one(table: Any, index: Any, lanes: int) -> Any:
    """Look up every byte of a vector alone."""
    bytes_of = [tirx.Shuffle([index], [i]).astype("int32") for i in range(lanes)]
    return tirx.Shuffle([table.vload([byte]) for byte in bytes_of], [*range(lanes)])


@pytest.mark.parametrize("has_it", [True, False])
def test_tables_are_looked_up_as_a_registered_set_does(has_it: bool) -> None:
    target = make_target(NATIVE)
    features = () if has_it else ("a feature of no processor",)
    way = ByteLookup(features, "toy", 4, one_by_one)
    instructions = InstructionSet("toy", (isa.architecture(target),), (), {}, lookups=(way,))
    isa.register(instructions)
    try:
        assert (isa.byte_lookup(target) is way) == has_it
        kernel = elementwise.kernel(elementwise.TableSpec((3, 5)), Machine.of(target, 1))
    finally:
        isa.unregister(instructions)
    assert (name_of(kernel) == "table_u8_uint8_toy") == has_it
    rng = np.random.default_rng(11)
    q, table = rng.integers(0, 256, (3, 5), np.uint8), rng.integers(0, 256, 256, np.uint8)
    np.testing.assert_array_equal(run(kernel, target, [q, table]), table[q])
