import contextlib
import importlib.metadata
from dataclasses import replace

import numpy as np
import pytest

import tvmquant
from tests.tvmquant.branches import LAYERS
from tvmquant.bit_choice import W4A4, W4A8, W8A8, BitChoice
from tvmquant.data import open_data
from tvmquant.errors import AllocationError
from tvmquant.layers import quantizable_layers, uniform_choices
from tvmquant.machine import Machine
from tvmquant.mixed_precision import Wishes, choose
from tvmquant.mixed_precision.choose import (
    SENSITIVITY_SAMPLES,
    Setup,
    check_wishes,
    choose_plan,
    frontier,
    make_record,
    measure_latency,
    measure_sensitivity,
)
from tvmquant.network_latency import NetworkLatency

G32 = BitChoice.parse("w4a4g32")
WISHES = Wishes(size="0.9x", choices=(W4A8, W4A4), sensitivity="random")


@contextlib.contextmanager
def silent(_name):
    yield lambda _done, _total: None


@pytest.fixture(scope="module")
def setup(branches_onnx, branches_data):
    graph = tvmquant.load_onnx(branches_onnx)
    images = np.load(branches_data)
    return Setup(graph, tvmquant.calibrate(graph, images), open_data(images), Machine.of())


@pytest.fixture(scope="module")
def layers(setup):
    return quantizable_layers(setup.graph)


def bits_latency(graph, _calibration, *, choices, pin_ends, **_options):
    """Stand for measuring: a kernel takes as many microseconds as its operands have bits."""
    layers = quantizable_layers(graph)
    plans = {c: uniform_choices(layers, c, pin_ends=pin_ends) for c in choices}
    table = {
        item.id: {str(p[item.id]): 1e-3 * (p[item.id].weight.bits + p[item.id].activation.bits)
                  for p in plans.values()}
        for item in layers
    }  # fmt: skip
    totals = {
        str(c): 0.1 + sum(table[name][str(taken)] for name, taken in plan.items())
        for c, plan in plans.items()
    }
    return NetworkLatency(
        model=graph.fingerprint(), target="t", threads=1, layers=table, fixed_ms=0.1,
        networks_ms=totals,
    )  # fmt: skip


@pytest.fixture
def latencies(monkeypatch):
    """Return the options of every measurement of a network, which is not really made."""
    calls = []

    def measure(*arguments, **options):
        calls.append(options)
        return bits_latency(*arguments, **options)

    monkeypatch.setattr(choose, "measure_network", measure)
    return calls


# -- what no measurement makes possible ----------------------------------------------------------


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        (Wishes(pinned={"lefd": W4A8}), "'lefd'"),
        (Wishes(pinned={"depthwise": G32}), "'depthwise'.* w4a4g32.*no kernel.*without groups"),
        (Wishes(pinned={"left": W4A4, "right": W8A8}), "'left' .*'right' "),
        (Wishes(size="0.5x"), "size cannot be"),
        (Wishes(bops="0.1x", choices=(W4A8,)), "bops cannot be"),
        (Wishes(size="lots"), "'lots'"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused_at_once(layers, wishes, message):
    with pytest.raises(AllocationError, match=message):
        check_wishes(layers, wishes)


@pytest.mark.parametrize(
    "wishes",
    [
        Wishes(),
        WISHES,
        Wishes(latency="1ms"),  # which only a measurement can tell
        Wishes(size="0.75x", pin_ends=False),
        Wishes(pinned={"head": BitChoice.parse("w4a8g32")}),
        Wishes(choices=(), pinned={"left": W4A4, "right": W4A4}),
    ],
)
def test_other_wishes_are_measured(layers, wishes):
    check_wishes(layers, wishes)


# -- measurements and their files ----------------------------------------------------------------


def test_a_latency_is_measured_once(setup, tmp_path, latencies):
    first = measure_latency(setup, WISHES, tmp_path)
    again = measure_latency(setup, replace(WISHES, size="0.5x", latency="0.7x"), tmp_path)
    assert again == first
    assert len(latencies) == 1
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [{"machine": Machine.of(threads=64)}, {"batch": 2}, {"machine": Machine.of("haswell")},
     {"tuning_state": "table, 9 records"},
     {"quantize_options": {"bound_pairs": False}}],
)  # fmt: skip
def test_of_another_setup_it_is_measured_again(setup, tmp_path, latencies, change):
    measure_latency(setup, WISHES, tmp_path)
    measure_latency(replace(setup, **change), WISHES, tmp_path)
    assert len(latencies) == 2


@pytest.mark.parametrize("change", ["tvmquant", "apache-tvm", "processor"])
def test_with_another_version_or_processor_it_is_measured_again(
    setup, tmp_path, latencies, monkeypatch, change
):
    measure_latency(setup, WISHES, tmp_path)
    if change == "processor":
        monkeypatch.setattr("tvmquant.tuning.record.processor_name", lambda: "another")
    else:
        version = importlib.metadata.version
        monkeypatch.setattr(
            "importlib.metadata.version", lambda name: "9.9" if name == change else version(name)
        )
    measure_latency(setup, WISHES, tmp_path)
    assert len(latencies) == len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "change", [{"choices": (W4A8,)}, {"pin_ends": False}, {"pinned": {"head": W4A8}}]
)
def test_for_other_choices_it_is_measured_again(setup, tmp_path, latencies, change):
    measure_latency(setup, WISHES, tmp_path)
    measure_latency(setup, replace(WISHES, **change), tmp_path)
    assert len(latencies) == 2


def test_a_damaged_file_is_replaced(setup, tmp_path, latencies, caplog):
    first = measure_latency(setup, WISHES, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text("{}")
    assert measure_latency(setup, WISHES, tmp_path) == first
    assert path.name in caplog.text
    assert len(latencies) == 2


def test_sensitivity_takes_a_few_items_spread_over_the_data(setup, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        choose, "estimate_sensitivity", lambda _graph, data, *_args, **options: seen.update(
            options, data=data)
    )  # fmt: skip
    many = np.zeros((10 * SENSITIVITY_SAMPLES, 3, 6, 6), np.float32)
    many += np.arange(len(many), dtype=np.float32)[:, None, None, None]
    measure_sensitivity(replace(setup, data=open_data(many)), WISHES, tmp_path)
    items = [item[0, 0, 0] for batch, _ in seen["data"] for item in batch]
    assert items == list(range(0, len(many), 10))
    assert seen["method"] == "random"


def test_sensitivity_is_of_the_weights_and_activations_as_they_are_quantized(setup, tmp_path):
    def perturbation(**options):
        with_options = replace(setup, quantize_options=options)
        wishes = replace(WISHES, sensitivity="output")
        return measure_sensitivity(with_options, wishes, tmp_path).perturbation

    default = perturbation()
    assert perturbation(weight_method="minmax") != default
    perturbation(bound_pairs=False)
    assert len(list(tmp_path.iterdir())) == 3


# -- plans ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("latencies")
def test_a_plan_keeps_its_budget_and_says_what_it_is(setup, layers, tmp_path):
    chosen = choose_plan(setup, WISHES, tmp_path, silent)
    plan = chosen.plan
    assert tuple(plan.layers) == LAYERS
    plan.check(layers, setup.graph.fingerprint())
    assert plan.predicted["size"] <= 0.9 * chosen.allocation.reference["size"]
    assert plan.predicted["latency"] == pytest.approx(chosen.latency.predict(plan.choices))
    assert (plan.model, plan.target, plan.threads) == ("branches", "t", 1)
    assert (plan.sensitivity, plan.budgets) == ("random", {"size": "0.9x"})


@pytest.mark.usefixtures("latencies")
def test_ends_are_narrowed_where_they_are_free_or_pinned_so(setup, tmp_path):
    free = choose_plan(setup, Wishes(size="0.72x", pin_ends=False), tmp_path, silent)
    assert free.plan.choices["stem"].weight.bits == 4
    assert "w4a8" in free.latency.layers["stem"]
    pinned = choose_plan(setup, Wishes(pinned={"head": W4A8}), tmp_path, silent)
    assert pinned.plan.choices["head"] == W4A8
    assert "pinned" in pinned.plan.layers["head"].reason
    assert pinned.plan.choices["stem"] == W8A8


@pytest.mark.usefixtures("latencies")
def test_a_pin_may_be_none_of_the_other_layers_choices(setup, tmp_path):
    wishes = Wishes(bops="1x", choices=(), pinned={"left": W4A4, "right": W4A4})
    taken = choose_plan(setup, wishes, tmp_path, silent).plan.choices
    assert {name for name, choice in taken.items() if choice == W4A4} == {"left", "right"}


@pytest.mark.usefixtures("latencies")
def test_a_latency_that_cannot_be_reached_names_the_least(setup, tmp_path):
    with pytest.raises(AllocationError, match="latency cannot be 90us: the least is"):
        choose_plan(setup, Wishes(latency="90us"), tmp_path, silent)


def test_what_is_measured_before_an_interruption_is_kept(setup, tmp_path, monkeypatch):
    stages = []

    @contextlib.contextmanager
    def stage(name):
        stages.append(name)
        yield lambda _done, _total: None

    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(choose, "measure_network", interrupt)
        with pytest.raises(KeyboardInterrupt):
            choose_plan(setup, WISHES, tmp_path, stage)
    assert stages == ["sensitivity", "latency"]
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("sensitivity-")
    monkeypatch.setattr(choose, "measure_network", bits_latency)
    monkeypatch.setattr("tvmquant.sensitivity.estimate.make_quantizers", None)
    choose_plan(setup, WISHES, tmp_path, stage)
    assert stages[2:] == ["sensitivity", "latency", "allocate"]


@pytest.mark.parametrize("choices", [(W4A8,), (W4A4,), (W4A8, W4A4), (G32,), ()])
@pytest.mark.parametrize("pin_ends", [True, False])
@pytest.mark.usefixtures("latencies")
def test_a_record_holds_all_points(setup, tmp_path, choices, pin_ends):
    wishes = Wishes(choices=choices, pin_ends=pin_ends, sensitivity="random")
    chosen = choose_plan(setup, wishes, tmp_path, silent)
    record = make_record(chosen, 0.25)
    assert [point.name for point in record.uniform] == [str(c) for c in wishes.measured]
    for point in record.uniform:
        assert point.predicted_ms == pytest.approx(point.measured_ms)
    assert [layer.id for layer in record.layers] == list(LAYERS)
    assert {layer.id: layer.choice for layer in record.layers} == {
        name: str(choice) for name, choice in chosen.plan.choices.items()
    }
    assert record.chosen.measured_ms == 0.25
    assert record.chosen.perturbation == pytest.approx(chosen.plan.predicted["perturbation"])
    assert record.chosen.size_bytes == chosen.plan.predicted["size"]
    times = [point.predicted_ms for point in record.frontier]
    assert times == sorted(times)
    assert len(times) == len(frontier(chosen)) >= 1
