import pytest

from tests.tvmquant.test_graph import build
from tvmquant import levels
from tvmquant.errors import QuantizationError
from tvmquant.layers import quantizable_layers
from tvmquant.passes import pipeline


@pytest.fixture
def calls(monkeypatch):
    """Count the runs of the pipeline's first two phases."""
    found = []

    def counted(name, phase):
        def run(module, *options, **named):
            found.append(name)
            return phase(module, *options, **named)

        return run

    for name in ("canonicalize", "annotate"):
        monkeypatch.setattr(pipeline, name, counted(name, getattr(pipeline, name)))
    return found


def test_each_level_is_computed_once(calls):
    graph = build()
    for _ in range(2):
        assert levels.annotated(graph).level == "L1"
        assert levels.canonical(graph) is levels.canonical(graph)
        assert quantizable_layers(graph) is quantizable_layers(graph)
    assert calls == ["canonicalize", "annotate"]


def test_each_activation_scheme_has_an_annotated_form_of_its_own(calls):
    graph = build()
    asymmetric, symmetric = levels.annotated(graph), levels.annotated(graph, "symmetric")
    assert asymmetric.module.script() != symmetric.module.script()
    assert calls == ["canonicalize", "annotate", "annotate"]


def test_another_graph_has_levels_of_its_own(calls):
    graph = build()
    levels.canonical(graph)
    levels.canonical(graph.with_module(build(scale=3.0).module))
    assert calls == ["canonicalize"] * 2


def test_only_a_float_graph_is_annotated():
    with pytest.raises(QuantizationError, match="L2"):
        levels.annotated(build().with_module(build().module, "L2"))
