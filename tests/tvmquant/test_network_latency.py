import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tvmquant
from tvmquant import network_latency
from tvmquant.bit_choice import DEFAULT_CHOICES, W4A4, W4A8, W8A8, BitChoice
from tvmquant.errors import AllocationError, DataError
from tvmquant.formats import UINT8
from tvmquant.layers import Layer, uniform_choices
from tvmquant.network_latency import NetworkLatency, measure_network
from tvmquant.quantization import activation_formats

CHOICES = tuple(
    map(BitChoice.parse, ("w8a8", "w8a4", "w4a8", "w4a4", "w6a5", "w2a7", "w4a8g32", "w4a4g64"))
)


def layer(name, op="conv2d", group="", position="", given=None):
    groupable = op in ("conv2d", "dense")
    return Layer(name, op, 1000, 100, 4, (f"{name}.x",), group or name, position, given, groupable)


@st.composite
def networks(draw):
    """Layers in any order of operations, some tied, with ends or without."""
    count = draw(st.integers(1, 6))
    ops = st.sampled_from(["conv2d", "dense", "depthwise_conv2d", "conv2d_transpose"])
    ends = {0: "first", count - 1: "last"} if draw(st.booleans()) else {}
    return [
        layer(f"l{i}", draw(ops), draw(st.sampled_from(["", "a", "b"])), ends.get(i, ""))
        for i in range(count)
    ]


# -- plans of one choice -----------------------------------------------------------------------


@given(networks(), st.sampled_from(CHOICES), st.booleans())
def test_a_uniform_plan_can_be_computed(layers, choice, pin_ends):
    plan = uniform_choices(layers, choice, pin_ends=pin_ends)
    assert list(plan) == [item.id for item in layers]
    activation_formats(layers, plan)  # refuses what has no kernel, and ties of different widths
    for item in layers:
        if pin_ends and item.position:
            assert plan[item.id] == W8A8
        elif item.allows(choice):
            assert plan[item.id].weight.bits == choice.weight.bits
            assert plan[item.id].weight.group == choice.weight.group


@given(networks(), st.sampled_from(CHOICES), st.booleans())
def test_activations_are_wide_only_where_a_tied_layer_needs_it(layers, choice, pin_ends):
    plan = uniform_choices(layers, choice, pin_ends=pin_ends)
    for item in layers:
        if plan[item.id].activation.bits != choice.activation.bits:
            assert any(
                not other.allows(choice) or (pin_ends and other.position)
                for other in layers
                if other.group == item.group
            )


def test_layers_take_what_is_nearest_to_the_choice():
    layers = [
        layer("stem", position="first"),
        layer("tied", group="x"),
        layer("depthwise", "depthwise_conv2d", group="x"),
        layer("free"),
        layer("head", "dense", position="last"),
    ]
    grouped = BitChoice.parse("w4a4g32")
    plan = {name: str(choice) for name, choice in uniform_choices(layers, grouped).items()}
    assert plan == {
        "stem": "w8a8", "tied": "w4a8g32", "depthwise": "w8a8", "free": "w4a4g32", "head": "w8a8",
    }  # fmt: skip
    plan = uniform_choices(layers, W4A4, pin_ends=False)
    assert (plan["stem"], plan["head"]) == (W4A4, W4A4)


# -- equation (1) ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def subject(small_onnx, small_data):
    graph = tvmquant.load_onnx(small_onnx)
    return graph, tvmquant.calibrate(graph, np.load(small_data)["images"])


def kernel_of(choice):
    """Bytes, or two weights in one, in groups or not; activations of 4 bits make longer chains."""
    return min(choice.weight.bits, 5), choice.weight.group, choice.activation.bits <= 4


@pytest.fixture
def without_building(monkeypatch):
    """Nothing is built; ``_time`` is to be replaced by the test. Returns the plans built."""
    plans = []
    manifest = SimpleNamespace(target={"config": "the target"}, threads=3)

    def quantize(_graph, _calibration, *, choices):
        return choices

    def build(plan, **_options):
        plans.append(plan)

    def workloads_of(plan, _machine, _batch):
        return {name: SimpleNamespace(key=kernel_of(choice)) for name, choice in plan.items()}

    monkeypatch.setattr("tvmquant.quantization.quantize", quantize)
    monkeypatch.setattr("tvmquant.deploy.build.build", build)
    monkeypatch.setattr("tvmquant.tuning.workload.workloads_of", workloads_of)
    monkeypatch.setattr(
        "tvmquant.deploy.loader.load",
        lambda _folder, device: SimpleNamespace(manifest=manifest),
    )
    return plans


def measured(
    monkeypatch, subject, layers, kernels, fixed, choices=DEFAULT_CHOICES, whole=None, **options
):
    """Measure a network whose kernels take known times, and nothing else differs.

    ``whole`` gives the factor by which all the kernels of a network are slower in a whole run.
    """
    plans = {choice: uniform_choices(layers, choice, **options) for choice in choices}

    def _time(networks, _progress):
        parts = {
            choice: {item.id: kernels(item, plans[choice][item.id]) for item in layers}
            for choice in networks
        }
        return {
            choice: fixed + (whole or {}).get(choice, 1.0) * sum(parts[choice].values())
            for choice in networks
        }, parts

    monkeypatch.setattr(network_latency, "quantizable_layers", lambda _graph: tuple(layers))
    monkeypatch.setattr(network_latency, "_time", _time)
    return measure_network(*subject, choices=choices, **options)


def of_bits(_item, choice):
    return choice.weight.bits * 0.1 + choice.activation.bits * 0.01


def of_kernel(_item, choice):
    bits, _, chained = kernel_of(choice)
    return bits * 0.1 - chained * 0.03


NETWORK = (
    layer("stem", position="first"), layer("a"), layer("b", group="t"),
    layer("c", group="t", given=UINT8), layer("head", "dense", position="last"),
)  # fmt: skip


@pytest.mark.usefixtures("without_building")
def test_the_terms_are_those_of_the_kernels(monkeypatch, subject):
    latency = measured(monkeypatch, subject, NETWORK, of_bits, fixed=5.0)
    assert {name: list(row) for name, row in latency.layers.items()} == {
        "stem": ["w8a8"], "a": ["w8a8", "w4a8", "w4a4"], "b": ["w8a8", "w4a8"],
        "c": ["w8a8", "w4a8"],
        "head": ["w8a8"],
    }  # fmt: skip
    for item in NETWORK:
        for name, milliseconds in latency.layers[item.id].items():
            assert milliseconds == pytest.approx(of_bits(item, BitChoice.parse(name)))
    assert latency.fixed_ms == pytest.approx(5.0)
    assert (latency.target, latency.threads) == ("the target", 3)
    assert latency.model == subject[0].fingerprint()


@pytest.mark.usefixtures("without_building")
def test_the_prediction_of_a_measured_network_is_its_latency(monkeypatch, subject):
    latency = measured(monkeypatch, subject, NETWORK, of_bits, fixed=5.0)
    assert list(latency.networks_ms) == ["w8a8", "w4a8", "w4a4"]
    for name, milliseconds in latency.networks_ms.items():
        plan = uniform_choices(NETWORK, BitChoice.parse(name))
        assert latency.predict(plan) == pytest.approx(milliseconds)
    mixed = {"a": W4A4, "b": W4A8}
    assert latency.predict(mixed) == pytest.approx(
        5.0 + sum(of_bits(item, mixed.get(item.id, W8A8)) for item in NETWORK)
    )


@pytest.mark.usefixtures("without_building")
@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_layers_are_corrected_where_their_sum_is_off(monkeypatch, subject, factor):
    whole = {W4A8: factor, W4A4: factor**2}
    latency = measured(monkeypatch, subject, NETWORK, of_bits, fixed=5.0, whole=whole)
    assert latency.fixed_ms == pytest.approx(5.0)
    for name, milliseconds in latency.networks_ms.items():
        plan = uniform_choices(NETWORK, BitChoice.parse(name))
        assert latency.predict(plan) == pytest.approx(milliseconds)
    assert latency.layers["a"]["w8a8"] == pytest.approx(of_bits(None, W8A8))
    assert (latency.layers["a"]["w4a8"] > of_bits(None, W4A8)) == (factor > 1)


@pytest.mark.usefixtures("without_building")
def test_what_another_program_did_is_no_correction(monkeypatch, subject):
    latency = measured(monkeypatch, subject, NETWORK, of_bits, fixed=5.0, whole={W4A4: 3.0})
    assert latency.layers["a"]["w4a4"] == pytest.approx(1.25 * of_bits(None, W4A4))


def test_w8a8_is_always_measured_and_every_network_once(monkeypatch, subject, without_building):
    measured(monkeypatch, subject, NETWORK, of_bits, 1.0, choices=(W8A8, W4A8, W4A8))
    assert without_building == [uniform_choices(NETWORK, choice) for choice in (W8A8, W4A8)]


def test_choices_of_one_kernel_share_a_measurement(monkeypatch, subject, without_building):
    names = ("w8a8", "w6a6", "w5a8", "w4a8", "w4a4", "w4a7", "w6a4")
    choices = tuple(map(BitChoice.parse, names))
    latency = measured(monkeypatch, subject, NETWORK, of_kernel, 5.0, choices=choices)
    built = [uniform_choices(NETWORK, BitChoice.parse(n)) for n in ("w8a8", "w4a8", "w4a4", "w6a4")]
    assert without_building == built
    assert list(latency.networks_ms) == list(names)
    assert latency.networks_ms["w6a6"] == latency.networks_ms["w8a8"]
    assert latency.networks_ms["w4a7"] == latency.networks_ms["w4a8"]
    row = latency.layers["a"]
    assert list(row) == ["w8a8", "w4a8", "w4a4", "w6a4", "w6a6", "w5a8", "w4a7"]
    for name, milliseconds in row.items():
        assert milliseconds == pytest.approx(of_kernel(None, BitChoice.parse(name)))
    assert row["w8a8"] == row["w6a6"] == row["w5a8"]


@pytest.mark.usefixtures("without_building")
def test_the_ends_are_measured_where_they_may_be_narrowed(monkeypatch, subject):
    latency = measured(monkeypatch, subject, NETWORK, of_bits, 1.0, pin_ends=False)
    assert list(latency.layers["stem"]) == ["w8a8", "w4a8", "w4a4"]
    assert list(latency.layers["head"]) == ["w8a8", "w4a8", "w4a4"]
    assert list(latency.layers["b"]) == ["w8a8", "w4a8"]


@pytest.mark.usefixtures("without_building")
def test_what_was_not_measured_is_named(monkeypatch, subject):
    latency = measured(monkeypatch, subject, NETWORK, of_bits, fixed=5.0)
    with pytest.raises(AllocationError, match="layer 'b' was not measured with w4a4, only with w8"):
        latency.predict({"b": W4A4})
    with pytest.raises(AllocationError, match="of a layer 'd'"):
        latency.predict({"d": W8A8})


def test_a_whole_network_is_measured(monkeypatch, subject):
    monkeypatch.setattr(network_latency, "ROUNDS", 2)
    monkeypatch.setattr(network_latency, "ROUND_SECONDS", 0.0)
    monkeypatch.setattr(network_latency, "SECONDS", 0.0)
    monkeypatch.setattr(network_latency, "RUNS", 2)
    steps = []
    latency = measure_network(
        *subject,
        choices=[W4A8],
        threads=1,
        pin_ends=False,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(n, 4) for n in (1, 2, 3, 4)]
    assert latency.threads == 1
    assert {name: list(row) for name, row in latency.layers.items()} == {
        "conv": ["w8a8", "w4a8"], "fc": ["w8a8", "w4a8"],
    }  # fmt: skip
    assert all(ms > 0 for row in latency.layers.values() for ms in row.values())
    assert all(ms > 0 for ms in latency.networks_ms.values())


# -- the file ----------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    latency = NetworkLatency(
        model="abc", target="llvm", threads=2, layers={"conv": {"w8a8": 0.5}}, fixed_ms=0.1,
        networks_ms={"w8a8": 0.6},
    )  # fmt: skip
    path = tmp_path / "latency.json"
    latency.save(path)
    return latency, path


def test_what_was_saved_is_read(saved):
    latency, path = saved
    assert NetworkLatency.load(path) == latency


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": {"conv": {"w8a8": "fast"}}}, "layers.conv.w8a8 = 'fast'"),
        ({"fixed_ms": float("nan")}, "fixed_ms"),
        ({"threads": 0}, "threads = 0"),
        ({"schema_version": 2}, "schema_version = 2"),
        ({"owner": "me"}, "owner = 'me'"),
    ],
)
def test_damage_is_named(saved, change, message):
    _, path = saved
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError) as caught:
        NetworkLatency.load(path)
    for part in ("network latency", str(path), message, "delete it to measure again"):
        assert part in str(caught.value)
