import pytest

from tvmquant.report import plots
from tvmquant.report.content import read_content


@pytest.fixture
def content(manifest, record):
    return read_content(manifest, record)


def with_layers(content, **change):
    layers = [layer.model_copy(update=change) for layer in content.record.layers]
    record = content.record.model_copy(update={"layers": layers})
    return read_content(content.manifest, record)


def test_sensitivity_has_a_point_for_each_narrower_choice(content):
    traces = plots.plot_sensitivity(content).spec["data"]
    found = {
        (name, trace["name"]): (saved, cost, symbol)
        for trace in traces
        for saved, (name, _, cost), symbol in zip(
            trace["x"], trace["customdata"], trace["marker"]["symbol"], strict=True
        )
    }
    expected = {
        (layer.id, choice): (
            layer.milliseconds["w8a8"] - layer.milliseconds[choice],
            layer.perturbation[choice] - layer.perturbation["w8a8"],
            layer.choice == choice,
        )
        for layer in content.record.layers
        for choice in layer.milliseconds.keys() - {"w8a8"}
    }
    assert found.keys() == expected.keys()
    for key, (saved, cost, chosen) in expected.items():
        assert found[key][:2] == (saved, cost)
        assert found[key][2].endswith("-open") != chosen


def test_what_costs_nothing_lies_below_all_else(content):
    free = {"w8a8": 2.0, "w4a8": 1.0, "w4a4": 3.0}
    traces = plots.plot_sensitivity(with_layers(content, perturbation=free)).spec["data"]
    by_choice = {trace["name"]: trace for trace in traces}
    assert set(by_choice["w4a4"]["y"]) == {1.0}
    assert 0 < max(by_choice["w4a8"]["y"]) < 1.0
    assert {cost for *_, cost in by_choice["w4a8"]["customdata"]} == {-1.0}


def test_no_plot_without_figures(content, manifest):
    assert plots.plot_sensitivity(with_layers(content, perturbation={})) is None
    plain = read_content(manifest)
    for make in (plots.plot_time, plots.plot_memory, plots.plot_frontier, plots.plot_prediction):
        assert make(content) is not None
        assert make(plain) is None


def test_frontier_shows_every_plan(content):
    record = content.record
    first, *plans = plots.plot_frontier(content).spec["data"]
    assert first["x"] == [point.predicted_ms for point in record.frontier]
    assert first["y"] == [point.perturbation for point in record.frontier]
    assert [plan["name"] for plan in plans] == ["w8a8", "w4a8", "w4a4", "chosen"]
    assert plans[-1]["x"] == [record.chosen.predicted_ms]


@pytest.mark.parametrize("budget", ["2.5ms", "0.5x", None])
def test_a_latency_budget_is_a_line(content, budget):
    budgets = {"size": "1MB"} if budget is None else {"latency": budget}
    record = content.record.model_copy(update={"budgets": budgets})
    layout = plots.plot_frontier(read_content(content.manifest, record)).spec["layout"]
    positions = {"2.5ms": [2.5], "0.5x": [record.uniform[0].predicted_ms / 2], None: []}
    assert [line["x0"] for line in layout.get("shapes", [])] == positions[budget]


def test_an_unmeasured_plan_has_no_bar(content):
    chosen = content.record.chosen.model_copy(update={"measured_ms": None})
    record = content.record.model_copy(update={"chosen": chosen})
    _, measured = plots.plot_prediction(read_content(content.manifest, record)).spec["data"]
    assert measured["y"][-1] is None
    assert measured["text"][-1] == ""


def test_bars_are_told_apart_without_colour(content):
    for make in (plots.plot_time, plots.plot_memory):
        traces = make(content).spec["data"]
        patterns = [trace["marker"]["pattern"].get("shape", "") for trace in traces]
        assert len(set(patterns)) == len(traces) == 2
        assert sum(len(trace["x"]) for trace in traces) == len(content.record.layers)
