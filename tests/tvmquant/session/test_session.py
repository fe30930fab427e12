from collections import Counter

import pytest

from tvmquant import frontend, graph
from tvmquant.bit_choice import W4A8
from tvmquant.calibration import calibration
from tvmquant.compilation import compile_onnx, plan_onnx
from tvmquant.mixed_precision import Wishes
from tvmquant.passes import pipeline

WISHES = Wishes(size="0.85x", choices=(W4A8,), sensitivity="output")
# What reads all weights, and what follows from the float graph alone.
ONCE = {
    "load_onnx": (frontend, "load_onnx"),
    "canonicalize": (pipeline, "canonicalize"),
    "annotate": (pipeline, "annotate"),
    "hash the float graph": (graph, "_fingerprint"),
    "hash the annotated graph": (calibration, "_model_fingerprint"),
}


@pytest.fixture
def calls(monkeypatch):
    """Count the calls of what is to run once."""
    counts = Counter()

    def counted(name, function):
        def run(*arguments, **options):
            counts[name] += 1
            return function(*arguments, **options)

        return run

    for name, (owner, attribute) in ONCE.items():
        monkeypatch.setattr(owner, attribute, counted(name, getattr(owner, attribute)))
    return counts


@pytest.mark.usefixtures("brief_timing")
@pytest.mark.parametrize("wishes", [None, WISHES], ids=["int8", "mixed"])
def test_a_compilation_reads_the_model_once(branches_onnx, branches_data, tmp_path, calls, wishes):
    compile_onnx(branches_onnx, branches_data, out=tmp_path / "out", threads=1, wishes=wishes)
    assert calls == dict.fromkeys(ONCE, 1)


@pytest.mark.usefixtures("brief_timing")
def test_a_plan_reads_the_model_once(branches_onnx, branches_data, tmp_path, calls):
    plan_onnx(branches_onnx, branches_data, WISHES, out=tmp_path / "plan.json", threads=1)
    assert calls == dict.fromkeys(ONCE, 1)
