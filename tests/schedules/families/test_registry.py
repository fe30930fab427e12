"""Every tiling of a family computes its layer exactly: a sample of each, against the default."""

from dataclasses import replace

import numpy as np
import pytest
from tvm import te

from tests.passes.graphs import graph
from tests.schedules import kernel_testing as kt
from tvmquant.bit_choice import W8A8, BitChoice
from tvmquant.errors import QuantizationError
from tvmquant.ir import quantized_ops as qop
from tvmquant.machine import Machine
from tvmquant.passes.lower_to_kernels import LowerToKernels
from tvmquant.schedules import conv2d, conv2d_transpose, depthwise_conv2d, families
from tvmquant.schedules.conv2d import Conv2DSpec
from tvmquant.schedules.conv2d_transpose import Conv2DTransposeSpec
from tvmquant.schedules.depthwise_conv2d import DepthwiseConv2DSpec
from tvmquant.schedules.epilogue import Epilogue
from tvmquant.schedules.families import Contraction, Family
from tvmquant.schedules.kernel_facts import operation_of, with_facts

SAMPLES = [3, pytest.param(8, marks=pytest.mark.slow)]
FULL = Epilogue("int32", "uint8", 0, 255)
SPECS = [
    ("conv2d", Conv2DSpec(1, 1, 1, 20, 24, (1, 1))),
    ("conv2d", Conv2DSpec(1, 1, 35, 16, 40, (1, 1))),
    ("conv2d", Conv2DSpec(2, 9, 7, 12, 20, (3, 3), (2, 2), (1, 1, 1, 1), input_zero_point=3)),
    ("conv2d", Conv2DSpec(1, 8, 9, 16, 24, (3, 3), (1, 1), (1, 1, 1, 1), chain=4)),
    ("conv2d", Conv2DSpec(1, 6, 6, 32, 32, (3, 3), groups=2)),
    ("depthwise_conv2d", DepthwiseConv2DSpec(1, 9, 8, 24, padding=(1, 1, 1, 1))),
    ("depthwise_conv2d", DepthwiseConv2DSpec(1, 9, 8, 19, 1, (5, 5), (2, 2), (2, 2, 2, 2))),
    ("depthwise_conv2d", DepthwiseConv2DSpec(1, 9, 8, 16, dilation=(2, 2))),
    ("conv2d_transpose", Conv2DTransposeSpec(1, 5, 6, 12, 24)),
    ("conv2d_transpose", Conv2DTransposeSpec(1, 5, 4, 8, 18, (3, 3), (2, 2), (1, 1, 1, 1))),
    ("conv2d_transpose", Conv2DTransposeSpec(1, 4, 4, 32, 32, (3, 3), groups=2)),
]


def inputs_of(family, spec, tiling):
    """Return the packed inputs of a kernel without an epilogue: the same layer for any tiling."""
    rng = np.random.default_rng(7)
    x = rng.integers(0, 256, (spec.batch, spec.height, spec.width, spec.channels)).astype(np.uint8)
    bias = rng.integers(-5000, 5000, spec.outputs).astype(np.int32)
    # so small that four sums of two products fit 16 bits
    low, high = (-15, 16) if getattr(spec, "chain", 0) else (-128, 128)
    if family == "depthwise_conv2d":
        weight = rng.integers(low, high, (spec.outputs, *spec.kernel)).astype(np.int8)
        padded = depthwise_conv2d.padded_outputs(spec, tiling)
        packed = depthwise_conv2d.pack_weight(weight, spec, tiling)
    else:
        shape = (spec.outputs, *spec.kernel, spec.channels // spec.groups)
        weight = rng.integers(low, high, shape).astype(np.int8)
        if family == "conv2d_transpose":
            biases = conv2d_transpose.pack_bias(bias, weight, spec, tiling)
            return [x, conv2d_transpose.pack_weight(weight, spec, tiling), biases]
        x = x.reshape(conv2d.input_shape(spec, tiling))
        padded = conv2d.padded_outputs(spec, tiling)
        packed = conv2d.pack_weight(weight, spec, tiling)
    return [x, packed, np.pad(bias, (0, padded - spec.outputs))]


@pytest.mark.parametrize(("name", "spec"), SPECS)
@pytest.mark.parametrize("target_name", [kt.NATIVE, "x86-64"])
@pytest.mark.parametrize("sample", SAMPLES)
def test_tilings_compute_what_the_default_does(name, spec, target_name, sample):
    target = kt.make_target(target_name)
    family = families.kernels(name)
    default, *others = family.tilings(spec, Machine.of(target, 2))
    assert default == family.default(spec, Machine.of(target, 2))
    expected = kt.run(family.kernel(spec, default), target, inputs_of(name, spec, default))
    chosen = np.random.default_rng(3).permutation(len(others))[:sample]
    for tiling in [others[i] for i in chosen]:
        found = kt.run(family.kernel(spec, tiling), target, inputs_of(name, spec, tiling))
        same = found.reshape(expected.shape)  # flat tilings give an image as one row
        np.testing.assert_array_equal(same, expected, str(tiling))


@pytest.mark.parametrize(("name", "spec"), SPECS)
def test_tilings_are_distinct_and_their_figures_make_sense(name, spec):
    target = kt.make_target("haswell")
    family = families.kernels(name)
    tilings = family.tilings(spec, Machine.of(target, 2))
    assert len(tilings) == len(set(tilings))
    for tiling in tilings:
        figures = family.figures(spec, tiling)
        assert figures["work"] >= figures["useful"] > 0
        assert min(figures.values()) >= 1


def test_one_thread_has_no_parallel_loops_to_choose():
    for name, spec in SPECS:
        for tiling in families.kernels(name).tilings(spec, Machine.of("haswell", 1)):
            assert name == "conv2d" or not tiling.parallel


def test_timing_specs_drop_mere_values_only():
    timing = families.kernels("conv2d").timing
    spec = Conv2DSpec(1, 8, 8, 16, 16, input_zero_point=3, epilogue=replace(FULL, qmin=4, qmax=9))
    assert timing(spec) == replace(spec, input_zero_point=0, epilogue=FULL)
    wide = replace(spec, epilogue=Epilogue("int64", "int16", -5, 5))
    assert timing(wide).epilogue == Epilogue("int64", "int16", -(2**15), 2**15 - 1)
    assert timing(replace(spec, epilogue=None)).epilogue is None


def test_families_are_asked_in_turn():
    def operation(operator, **fields):
        contraction = Contraction(operator, 1, 8, 8, 12, 24, **fields)
        return families.family_of(contraction, W8A8, None, "layer").operation

    assert operation("conv2d") == "conv2d"
    assert operation("conv2d", groups=12) == "depthwise_conv2d"
    assert operation("conv2d", groups=3) == "conv2d"
    assert operation("dense") == "dense"
    assert [families.sums_one_channel(op) for op in ("depthwise_conv2d", "conv2d")] == [True, False]
    overlap = {"kernel": (3, 3), "strides": (2, 2)}
    assert operation("conv2d_transpose", **overlap) == "conv2d_transpose"


def test_transposed_convolutions_without_overlap_have_kernels_of_one_pixel():
    tiled = Contraction("conv2d_transpose", 1, 8, 8, 12, 24, (2, 2), (2, 2))
    assert families.family_of(tiled, W8A8, None, "layer").name == "conv2d"
    near_misses = [
        {"kernel": (3, 3)}, {"padding": (0, 0, 1, 0)}, {"output_padding": (1, 0)}, {"groups": 2},
        {"dilation": (2, 1)}, {"residual": True},
    ]  # fmt: skip
    for fields in near_misses:
        near = replace(tiled, **fields)
        assert families.family_of(near, W8A8, None, "layer").name == "conv2d_transpose"


class Ternary(Family):
    """A family of a test's own, which computes dense layers of three outputs."""

    name = operation = "ternary"

    def accepts(self, contraction, choice, machine):
        return contraction.operator == "dense" and contraction.outputs == 3

    def lower(self, layer, machine, tilings):
        x = te.placeholder((layer.contraction.batch, layer.contraction.channels), "uint8", name="x")
        weight = te.placeholder(layer.weight.shape, "int8", name="weight")
        k = te.reduce_axis((0, layer.contraction.channels), "k")

        def product(i, o):
            return te.sum(x[i, k].astype("int32") * weight[o, 0, 0, k].astype("int32"), axis=[k])

        out = te.compute((layer.contraction.batch, 3), product, name="out")
        kernel = with_facts(te.create_prim_func([x, weight, out]), "ternary_u8", self.operation)
        return families.Lowered(kernel, (families.Operand("input"), layer.weight), (2, 3))

    def default(self, spec, machine):
        raise NotImplementedError

    others = kernel = figures = default


@pytest.fixture
def ternary():
    family = Ternary()
    families.register(family)
    yield family
    families.unregister(family)


def dense(outputs, choice="w8a8"):
    """Return a dense layer at L2 and its weight."""
    weight = np.arange(outputs * 16, dtype=np.int8).reshape(outputs, 16)
    attrs = {
        "input_zero_point": 0, "input_qmin": 0, "input_qmax": 255, "choice": choice,
        "epilogue": 0, "out_dtype": "int32", "id": "dense",
    }  # fmt: skip
    constants = map(qop.constant, (weight, np.zeros(outputs, np.int32)))
    module = graph(
        lambda emit, x: emit(qop.emit(qop.QDENSE, [x, *constants], attrs)), (2, 16), dtype="uint8"
    )
    return module, weight


@pytest.mark.usefixtures("ternary")
def test_a_registered_family_computes_what_it_accepts():
    target = kt.make_target(kt.NATIVE)
    module, weight = dense(3)
    lowered = LowerToKernels(Machine.of(target, 1))(module)
    (kernel,) = [f for v, f in lowered.functions.items() if v.name_hint != "main"]
    assert operation_of(kernel) == "ternary"
    x = np.random.default_rng(0).integers(0, 256, (2, 16)).astype(np.uint8)
    found = kt.run(kernel, target, [x, weight[:, None, None, :]])
    np.testing.assert_array_equal(found, x.astype(int) @ weight.T.astype(int))
    other = LowerToKernels(Machine.of(target, 1))(dense(4)[0])
    assert "dense" in {operation_of(f) for f in other.functions.values()}


def test_what_no_family_accepts_is_named():
    contraction = Contraction("conv3d", 1, 8, 8, 12, 24)
    with pytest.raises(QuantizationError, match=r"layer 'cube': no kernel computes .*conv3d"):
        families.family_of(contraction, W8A8, None, "cube")


class Cubes(Ternary):
    """A family of contractions that no other computes, of some formats and processors."""

    def __init__(self, weight_bits=range(2, 9), feature=None):
        self.weight_bits, self.feature = weight_bits, feature

    def accepts(self, contraction, choice, machine):
        can = self.feature is None or machine is None or self.feature in machine.features
        return contraction.operator == "conv3d" and choice.weight.bits in self.weight_bits and can

    def scales_groups(self, contraction, choice, machine):
        return choice.weight.bits == 4 and (machine is None or "avx2" in machine.features)


@pytest.fixture
def registered():
    """Register families, of which the first is asked first."""
    added = []

    def add(*given):
        for family in reversed(given):
            families.register(family)
            added.append(family)

    yield add
    for family in added:
        families.unregister(family)


CUBE = Contraction("conv3d", 1, 8, 8, 12, 24)
HASWELL, VNNI = Machine.of("haswell", 1), Machine.of("cascadelake", 1)


def test_families_may_differ_by_the_formats_that_they_accept(registered):
    ternary, nibbles = Cubes(range(2, 4)), Cubes(range(4, 5))
    registered(ternary, nibbles)
    for text, expected in {"w3a8": ternary, "w2a4": ternary, "w4a8": nibbles}.items():
        choice = BitChoice.parse(text)
        assert families.family_of(CUBE, choice, HASWELL, "cube") is expected
    with pytest.raises(QuantizationError, match=r"'cube': no kernel .*conv3d.* as w5a8 .*haswell"):
        families.family_of(CUBE, BitChoice.parse("w5a8"), HASWELL, "cube")


def test_families_may_differ_by_the_processors_that_they_accept(registered):
    vnni, avx2 = Cubes(feature="avx512vnni"), Cubes(feature="avx2")
    registered(vnni, avx2)
    assert families.family_of(CUBE, W8A8, VNNI, "cube") is vnni
    assert families.family_of(CUBE, W8A8, HASWELL, "cube") is avx2
    assert families.family_of(CUBE, W8A8, None, "cube") is vnni
    with pytest.raises(QuantizationError, match=r"'cube': no kernel .*conv3d.* as w8a8 .*nehalem"):
        families.family_of(CUBE, W8A8, Machine.of("nehalem", 1), "cube")


def test_whether_groups_are_scaled_depends_on_formats_and_processors(registered):
    registered(Cubes(range(4, 9)))
    nibbles, wide, narrow = map(BitChoice.parse, ("w4a8g32", "w8a8", "w3a8g32"))
    nehalem = Machine.of("nehalem", 1)
    for machine, expected in {HASWELL: True, None: True, nehalem: False}.items():
        assert families.scales_groups(CUBE, nibbles, machine) is expected
    assert not families.scales_groups(CUBE, wide, HASWELL)
    assert not families.scales_groups(CUBE, narrow, HASWELL)  # none computes it


@pytest.mark.parametrize("kind", [{"weight_bits": (7,)}, {"feature": "avx512vnni"}])
def test_lowering_asks_with_the_formats_and_the_machine_of_a_layer(registered, kind):
    class Dense(Cubes):
        def accepts(self, contraction, choice, machine):
            as_cube = replace(contraction, operator="conv3d")
            return contraction.operator == "dense" and super().accepts(as_cube, choice, machine)

    registered(Dense(**kind))

    def operations(choice, machine):
        lowered = LowerToKernels(machine)(dense(3, choice)[0])
        return {operation_of(f) for v, f in lowered.functions.items() if v.name_hint != "main"}

    accepted = ("w7a8", VNNI)
    refused = ("w8a8", VNNI) if "weight_bits" in kind else ("w7a8", HASWELL)
    assert "ternary" in operations(*accepted)
    assert "ternary" not in operations(*refused)
