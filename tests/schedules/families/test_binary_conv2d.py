"""Layers of one bit, or few: which of them the family computes, and that it does so exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.schedules import kernel_testing as kt
from tests.schedules.conv2d_cases import accumulate
from tvmquant.bit_choice import W8A8, BitChoice
from tvmquant.errors import QuantizationError
from tvmquant.formats import BINARY
from tvmquant.machine import Machine
from tvmquant.schedules import families
from tvmquant.schedules.conv2d import Conv2DSpec
from tvmquant.schedules.epilogue import Epilogue
from tvmquant.schedules.families import CONV2D, DENSE, Contraction, Layer, Operand, Vectors
from tvmquant.schedules.kernel_facts import name_of, operation_of
from tvmquant.schedules.pack_bits import planes_of

W1A1, W1A2, W2A1 = map(BitChoice.parse, ("w1a1", "w1a2", "w2a1"))
CONTRACTIONS = {
    "3x3": Contraction(CONV2D, 1, 6, 7, 64, 24, (3, 3), (1, 1), (1, 1, 1, 1)),
    "strided": Contraction(CONV2D, 3, 6, 5, 32, 5, (3, 3), (2, 2), (1, 1, 1, 1)),
    "pointwise": Contraction(CONV2D, 2, 3, 3, 96, 100),
    "row": Contraction(DENSE, 1, 1, 1, 512, 100),
    "rows": Contraction(DENSE, 7, 1, 1, 64, 24),
}


def layer_of(contraction: Contraction, choice: BitChoice = W1A1, seed: int = 0) -> Layer:
    """Return a layer whose zero point is the middle, rounded up."""
    rng = np.random.default_rng(seed)
    window = (contraction.outputs, *contraction.kernel, contraction.channels)
    weight = rng.choice([-1, 1] if choice.weight == BINARY else [-1, 0, 1], window).astype(np.int8)
    low, high = choice.activation.qmin, choice.activation.qmax
    zero = (low + high + 1) // 2
    bias = rng.integers(-99, 99, contraction.outputs) - zero * weight.sum(axis=(1, 2, 3), dtype=int)
    return Layer(
        contraction, "layer", weight, bias.astype(np.int32), choice.weight, choice.activation,
        input_zero_point=zero, input_qmin=low, input_qmax=high,
    )  # fmt: skip


def family_of(contraction: Contraction, choice: BitChoice = W1A1) -> families.Family:
    return families.family_of(contraction, choice, None, "layer")


def run(layer: Layer, target: str, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return what the layer's kernel gives for random bits, and what it should."""
    c = layer.contraction
    machine = Machine.of(kt.make_target(target), threads)
    choice = BitChoice(layer.weight_format, layer.activation_format)
    lowered = family_of(c, choice).lower(layer, machine, lambda *_: None)
    rng = np.random.default_rng(1)
    step = 2 if layer.activation_format.bits == 1 else 1
    levels = np.arange(layer.input_qmin, layer.input_qmax + 1, step)
    x = rng.choice(levels, (c.batch, c.height, c.width, c.channels)).astype(np.uint8)
    acc = accumulate(
        Conv2DSpec(
            c.batch, c.height, c.width, c.channels, c.outputs, c.kernel, c.strides, c.padding,
            c.dilation, input_zero_point=layer.input_zero_point,
        ),
        x, layer.weight, layer.bias,
    )  # fmt: skip
    residual = rng.integers(0, 256, acc.shape).astype(np.uint8)
    tensors = {"input": x, "residual": residual}

    def tensor(operand: Operand) -> np.ndarray:
        values = tensors[operand.name]
        if operand.bits is not None:
            codes = values if operand.planes > 1 else values // 128
            values = planes_of(codes, operand.bits, operand.planes)
        return values.reshape(operand.shape)

    arguments = [
        tensor(a) if isinstance(a, Operand) else getattr(a, "packed", a) for a in lowered.arguments
    ]
    found = kt.run(lowered.kernel, machine.target, arguments).reshape(acc.shape)
    if layer.epilogue is None:
        return found, acc
    v = layer.vectors
    assert v is not None
    added = (residual, v.residual) if layer.epilogue.residual else None
    return found, kt.apply_epilogue(
        layer.epilogue, acc, v.multiplier, v.offset, v.shift, residual=added
    )


@pytest.mark.parametrize("target", ["haswell", "x86-64"])
@pytest.mark.parametrize("name", CONTRACTIONS)
def test_layers_are_exact(name: str, target: str) -> None:
    found, expected = run(layer_of(CONTRACTIONS[name]), target)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("choice", ["w1a2", "w1a3", "w2a1"])
@pytest.mark.parametrize(("name", "target"), [("strided", "haswell"), ("rows", kt.NATIVE)])
def test_layers_of_a_few_bits_are_exact(name: str, target: str, choice: str) -> None:
    layer = layer_of(CONTRACTIONS[name], BitChoice.parse(choice))
    found, expected = run(layer, target)
    np.testing.assert_array_equal(found, expected)


def test_imported_weights_of_two_bits_can_be_minus_two() -> None:
    """These have no two planes of signs, and are multiplied."""
    layer = layer_of(CONTRACTIONS["strided"], W2A1)
    weight = layer.weight.copy()
    weight[1, 0, 0, 0] = -2
    found, expected = run(replace(layer, weight=weight), "haswell")
    np.testing.assert_array_equal(found, expected)


def test_padding_is_the_zero_point() -> None:
    """The lower level where activations are never negative."""
    layer = replace(layer_of(CONTRACTIONS["strided"]), input_zero_point=127)
    found, expected = run(layer, "haswell")
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("residual", [False, True])
def test_epilogues_take_the_accumulator(residual: bool) -> None:
    layer = layer_of(CONTRACTIONS["3x3"])
    ones = np.ones(layer.contraction.outputs, np.int32)
    vectors = Vectors(3 * ones, 700 * ones, 3 * ones, residual=5 * ones if residual else None)
    epilogue = Epilogue("int32", "uint8", 0, 255, residual=residual)
    found, expected = run(layer.finished(epilogue, vectors, "uint8"), "haswell", threads=2)
    assert len(np.unique(expected)) > 20
    np.testing.assert_array_equal(found, expected)


def test_accepts_whole_words_of_one_group() -> None:
    contraction = CONTRACTIONS["3x3"]
    assert family_of(contraction).name == "binary_conv2d"
    assert family_of(contraction).operation == "conv2d"
    assert family_of(CONTRACTIONS["row"]).operation == "dense"
    assert family_of(contraction, W8A8).name == "conv2d"
    bits, bytes_ = BitChoice(W1A1.weight, W8A8.activation), BitChoice(W8A8.weight, W1A1.activation)
    for other in (bits, bytes_, *map(BitChoice.parse, ("w2a2", "w1a4", "w3a1", "w2a1g32"))):
        assert family_of(contraction, other).name == "conv2d"
    for choice in (W1A1, W1A2, W2A1):
        assert family_of(contraction, choice).name == "binary_conv2d"
        for fields in ({"channels": 48}, {"groups": 2}, {"channels": 3}):
            assert family_of(replace(contraction, **fields), choice).name == "conv2d"
    assert not family_of(contraction).scales_groups(contraction, W1A1, None)


def test_other_weights_are_refused() -> None:
    layer = layer_of(CONTRACTIONS["3x3"])
    with pytest.raises(QuantizationError, match=r"layer 'layer': weights in \[-1, 1\], expected"):
        run(replace(layer, weight=layer.weight * (np.arange(64) > 0)), "haswell")


def test_kernels_say_what_they_multiply() -> None:
    machine = Machine.of("haswell", 1)
    for name, operation in (("3x3", "conv2d"), ("row", "dense")):
        for choice, types in ((W1A1, "u1s1s32"), (W1A2, "u2s1s32"), (W2A1, "u1s2s32")):
            layer = layer_of(CONTRACTIONS[name], choice)
            family = family_of(layer.contraction, choice)
            kernel = family.lower(layer, machine, lambda *_: None).kernel
            assert operation_of(kernel) == operation
            assert name_of(kernel).startswith(f"{operation}_{types}_vpshufb256_tile")


@pytest.mark.parametrize("target", ["haswell", "x86-64", "znver4"])
def test_tilings_of_records_compute_the_layer(target: str) -> None:
    """Those of the spec without mere values, under the name of the family."""
    family = families.kernels("binary_conv2d")
    spec = Conv2DSpec(1, 8, 8, 64, 24, (3, 3), padding=(1, 1, 1, 1), binary=True)
    spec = replace(spec, input_zero_point=128, epilogue=Epilogue("int32", "uint8", 3, 9))
    timed = family.timing(spec)
    assert timed == replace(spec, input_zero_point=0, epilogue=Epilogue("int32", "uint8", 0, 255))
    machine = Machine.of(kt.make_target(target), 2)
    tilings = family.tilings(timed, machine)
    assert tilings[0] == family.default(spec, machine)
    assert len(tilings) == len(set(tilings))
    for tiling in tilings[::5]:
        figures = family.figures(spec, tiling)
        assert figures["work"] >= figures["useful"] > 0
        assert min(figures.values()) >= 1
