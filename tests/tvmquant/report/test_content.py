from dataclasses import replace

import pytest

from tvmquant.deploy.manifest import LayerInfo
from tvmquant.errors import DataError
from tvmquant.report.content import read_content
from tvmquant.report.timing import Timing


def test_rows_are_the_kernels_in_execution_order(manifest, record):
    rows = read_content(manifest, record).rows
    kernels = [(row.id, kernel) for row in rows for kernel in row.kernels]
    assert kernels == [(layer.id, layer.kernel) for layer in manifest.layers]
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    assert [row.id for row in rows if row.record] == [layer.id for layer in record.layers]
    for row in rows:
        if row.record is not None:
            assert row.op == row.record.op
            assert row.macs == row.record.macs
            assert row.predicted_ms == row.record.milliseconds[row.record.choice]


def test_totals_add_up(manifest, record):
    content = read_content(manifest, record)
    assert [total.name for total in content.widths] == ["w8a8", "w4a8"]
    assert content.choices == ("w8a8", "w4a8", "w4a4")
    assert sum(total.layers for total in content.widths) == len(record.layers)
    assert sum(total.weights for total in content.widths) == sum(w.weights for w in record.layers)
    bits = {"w8a8": 8, "w4a8": 4}
    for total in content.widths:
        assert total.weight_bytes == total.weights * bits[total.name] / 8
    predicted = sum(total.predicted_ms for total in content.widths)
    assert predicted + record.fixed_ms == pytest.approx(record.chosen.predicted_ms)
    assert sum(total.layers for total in content.operations) == len(content.rows)


def test_without_a_record_the_manifest_is_all(manifest):
    content = read_content(manifest)
    assert [total.name for total in content.widths] == ["w8a8", "w4a8"]
    assert content.plans == content.caveats == ()
    assert content.speedup is content.baseline is None
    assert all(total.weights is total.predicted_ms is None for total in content.widths)


def test_speedup_is_measured_where_both_plans_were(manifest, record):
    base = record.uniform[0]
    factor, kind = read_content(manifest, record).speedup
    assert (factor, kind) == (base.measured_ms / record.chosen.measured_ms, "measured")

    unmeasured = record.chosen.model_copy(update={"measured_ms": None})
    content = read_content(manifest, record.model_copy(update={"chosen": unmeasured}))
    assert content.speedup == (base.predicted_ms / record.chosen.predicted_ms, "predicted")
    assert "not measured" in " ".join(content.caveats)

    change = {"uniform": [], "budgets": {}}
    assert read_content(manifest, record.model_copy(update=change)).speedup is None


def test_a_plan_for_another_target_is_pointed_out(manifest, record):
    assert read_content(manifest, record).caveats == ()
    for change in ({"target": "other"}, {"threads": 4}):
        (caveat,) = read_content(manifest, record.model_copy(update=change)).caveats
        assert "do not hold" in caveat


def test_neighbouring_kernels_of_a_node_are_one_row(manifest, record):
    first = manifest.layers[1]
    layers = list(manifest.layers)
    layers[1:2] = [replace(first, kernel="pack", choice="", macs=0), first]
    layers.append(replace(first, kernel="again", choice="", macs=0))
    split = replace(manifest, layers=layers)
    times = tuple(float(i) for i in range(len(layers)))
    content = read_content(split, record).with_timing(Timing(times, 1.0, 1))
    row, *others = [row for row in content.rows if row.id == first.id]
    assert row.kernels == ("pack", first.kernel)
    assert row.measured_ms == times[1] + times[2]
    assert row.record is not None
    assert [(o.kernels, o.measured_ms, o.record) for o in others] == [(("again",), times[-1], None)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "elsewhere"}, "layer 'elsewhere' is not one of this library"),
        ({"choice": "w4a4"}, "choice w4a4, but the library has w8a8"),
        ({"choice": "narrow"}, "bit choice 'narrow'"),
        ({"perturbation": {"w9a8": 1.0}}, "expected weights and activations of 1 to 8 bits"),
    ],
)
def test_a_record_of_another_library_is_refused(manifest, record, change, message):
    layers = [record.layers[0].model_copy(update=change), *record.layers[1:]]
    with pytest.raises(DataError, match=message):
        read_content(manifest, record.model_copy(update={"layers": layers}))


def test_budgets_are_compared_with_the_plan(manifest, record):
    chosen, base = record.chosen, record.uniform[0]
    budgets = {"latency": "1ms", "size": "0.5x", "bops": "1G"}
    content = read_content(manifest, record.model_copy(update={"budgets": budgets}))
    assert [(limit.quantity, limit.value, limit.taken) for limit in content.limits] == [
        ("latency", 1.0, chosen.measured_ms),
        ("size", base.size_bytes / 2, chosen.size_bytes),
        ("bops", 1e9, chosen.bops),
    ]
    assert [limit.is_kept for limit in content.limits] == [False, False, True]
    latency, size = content.caveats
    assert "budget of latency: 2.768ms of 1ms" in latency
    assert "budget of size" in size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budgets": {"latency": "soon"}}, "latency budget 'soon' is not understood"),
        ({"budgets": {"joy": "1x"}}, "budget of 'joy'; expected one of latency, size, bops"),
        ({"budgets": {"size": "0.5x"}, "uniform": []}, "no plan named 'w8a8'"),
    ],
)
def test_a_budget_that_is_none_is_refused(manifest, record, change, message):
    with pytest.raises(DataError, match=message):
        read_content(manifest, record.model_copy(update=change))


def test_sizes_of_results(manifest):
    layers = [
        LayerInfo("a", "conv2d", "k", [1, 3, 5], "uint8"),
        LayerInfo("b", "conv2d", "k", [1, 3, 5], "float32"),
        LayerInfo("c", "conv2d", "k", [1, 3, 5], "uint4"),
        LayerInfo("d", "conv2d", "k", [], "bool"),
    ]
    rows = read_content(replace(manifest, layers=layers)).rows
    assert [row.output_bytes for row in rows] == [15, 60, 8, 1]
    assert rows[0].output == "uint8 1x3x5"
