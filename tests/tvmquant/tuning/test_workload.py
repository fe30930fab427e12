"""Workloads: equal keys for equal kernels, found for every layer and choice."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tvmquant.networks import MIXTURE_SHAPE, export_mixture, images_of
from tests.tvmquant.tuning.kernels import REQUANTIZE, conv, depthwise, haswell
from tvmquant.bit_choice import W4A4, W8A8, BitChoice
from tvmquant.errors import QuantizationError, TargetError
from tvmquant.frontend import load_onnx
from tvmquant.quantization import calibrate, quantize
from tvmquant.schedules import families
from tvmquant.schedules.conv2d import Conv2DSpec
from tvmquant.tuning.workload import (
    Workload,
    canonical_json,
    encode,
    geometry_of,
    workloads_by_choice,
    workloads_of,
)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    graph = load_onnx(export_mixture(tmp_path_factory.mktemp("mixture") / "mixture.onnx"))
    return graph, calibrate(graph, images_of(MIXTURE_SHAPE), method="minmax")


def test_a_field_that_holds_its_default_does_not_change_the_key():
    @dataclasses.dataclass(frozen=True)
    class Wider(Conv2DSpec):
        added: int = 8

    spec = conv().spec
    fields = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
    assert canonical_json(Wider(**fields)) == canonical_json(spec)
    assert canonical_json(Wider(**fields, added=4)) != canonical_json(spec)


def test_encoding_names_instructions_and_inner_types():
    tiling = next(iter(conv().tilings(haswell()).values()))
    assert encode(tiling)["dot"] == tiling.dot.name
    assert encode(conv().spec)["epilogue"]["type"] == "Epilogue"


@given(zero_point=st.integers(0, 255), qmin=st.integers(0, 20), qmax=st.integers(100, 255))
def test_mere_values_do_not_make_another_workload(zero_point, qmin, qmax):
    clipped = dataclasses.replace(REQUANTIZE, qmin=qmin, qmax=qmax)
    spec = dataclasses.replace(conv().spec, input_zero_point=zero_point, epilogue=clipped)
    assert Workload.of("conv2d", spec).key == conv().key


def test_chains_are_equal_where_no_tiling_could_tell_them_apart():
    layer = conv(64, 64).spec  # runs of 192 bytes, 48 steps
    keys = {}
    for chain in range(200):
        workload = Workload.of("conv2d", dataclasses.replace(layer, chain=chain))
        assert workload.spec.chain <= chain
        assert Workload.of("conv2d", workload.spec) == workload
        if workload.key not in keys:  # the shortest chain of those that are equal
            for tiling in workload.tilings(haswell()).values():
                assert tiling.chain <= max(chain, 1)
        keys.setdefault(workload.key, []).append(chain)
    assert len(keys) < 20
    assert [*range(48, 200)] in keys.values()


def test_what_changes_the_code_makes_another_workload():
    plain = conv()
    others = [
        conv(32),
        conv(strides=(2, 2)),
        Workload.of("conv2d", dataclasses.replace(plain.spec, epilogue=None)),
        Workload.of(
            "conv2d",
            dataclasses.replace(
                plain.spec, epilogue=dataclasses.replace(REQUANTIZE, compute_dtype="int64")
            ),
        ),
        depthwise(),
    ]
    assert len({w.key for w in [plain, *others]}) == 1 + len(others)
    same_geometry = [w for w in others if w.geometry == plain.geometry]
    assert same_geometry == others[2:4]
    assert plain.geometry == geometry_of(plain.family, encode(plain.spec))


def test_the_default_is_the_first_tiling():
    for workload in (conv(), depthwise()):
        first = next(iter(workload.tilings(haswell()).values()))
        family = families.kernels(workload.family)
        assert first == family.default(workload.spec, haswell())


def test_every_layer_has_a_workload(mixture):
    graph, calibration = mixture
    quantized = quantize(graph, calibration)
    found = workloads_of(quantized, haswell())
    families = {w.family for w in found.values()}
    assert families == {"conv2d", "depthwise_conv2d", "conv2d_transpose"}
    assert len(found) == 8
    assert workloads_of(quantized, haswell(), batch=3) != found
    with pytest.raises(QuantizationError, match="expected an integer graph"):
        workloads_of(graph, haswell())


def test_layers_have_the_choices_they_can_take_together(mixture):
    graph, calibration = mixture
    grouped = BitChoice.parse("w4a8g32")
    found = workloads_by_choice(graph, calibration, [W8A8, W4A4, grouped], haswell())
    assert len(found) == 8
    for by_choice in found.values():
        assert {"w8a8", "w4a4"} <= by_choice.keys()
    families = {b["w8a8"].family: set(b) for b in found.values()}
    assert "w4a8g32" not in families["depthwise_conv2d"] | families["conv2d_transpose"]
    assert "w4a8g32" in families["conv2d"]
    # kernels that multiply bytes do so whatever the width
    for by_choice in found.values():
        if by_choice["w8a8"].family == "depthwise_conv2d":
            assert by_choice["w4a4"] == by_choice["w8a8"]


def test_kernels_follow_how_weights_are_rounded(mixture):
    graph, calibration = mixture
    by_rounding = {}
    for bounded in (True, False):
        quantized = quantize(graph, calibration, bound_pairs=bounded)
        by_rounding[bounded] = workloads_of(quantized, haswell())
        found = workloads_by_choice(graph, calibration, [W8A8], haswell(), bound_pairs=bounded)
        assert {name: by["w8a8"] for name, by in found.items()} == by_rounding[bounded]
    assert by_rounding[True] != by_rounding[False]


def test_an_unknown_family_is_an_error():
    with pytest.raises(
        TargetError, match="expected one of depthwise_conv2d, binary_conv2d, conv2d, "
    ):
        families.kernels("conv3d")


def test_keys_are_those_of_every_process():
    # a key that changed would make every database useless: change the schema version with it
    spec = Conv2DSpec(1, 8, 8, 16, 32, epilogue=REQUANTIZE)
    assert Workload.of("conv2d", spec).key == "eced85e78ff654cd"
    assert np.unique([Workload.of("conv2d", spec).key for _ in range(3)]).size == 1
