"""The phases in order, and what they leave in the folder of ``TVMQUANT_DUMP``."""

from pathlib import Path
from typing import Any

import pytest
import tvm
from tvm import relax

from tests.passes.graphs import const, graph, normal
from tvmquant.machine import Machine
from tvmquant.passes import pipeline
from tvmquant.twin import Twin

SHAPE = ("n", 3, 6, 6)
PHASES = [
    "1-canonical", "2-annotated", "3-calibrated", "4-integer", "5-kernels", "6-entries",
    "7-weights",
]  # fmt: skip


def network() -> tvm.IRModule:
    def body(emit: Any, x: Any) -> Any:
        return emit(relax.op.nn.relu(emit(relax.op.nn.conv2d(x, const(normal(8, 3, 3, 3))))))

    return graph(body, (tvm.tirx.Var("n", "int64"), *SHAPE[1:]))


def levels() -> dict[str, tvm.IRModule]:
    """Take a network through every phase."""
    found = {"1-canonical": pipeline.canonicalize(network())}
    found["2-annotated"] = pipeline.annotate(found["1-canonical"])
    edges = Twin(found["2-annotated"]).edges
    ranges = {edge.id: (-4.0, 4.0) for edge in edges}
    found["3-calibrated"] = pipeline.apply_calibration(found["2-annotated"], ranges)
    found["4-integer"] = pipeline.integerize(found["3-calibrated"], strict=True)
    found["5-kernels"] = pipeline.lower(found["4-integer"], Machine.of("haswell", 2), 2)
    found["6-entries"] = pipeline.expose_integers(found["5-kernels"])
    found["7-weights"] = pipeline.store_weights(found["6-entries"])
    return found


def test_every_phase_is_dumped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "new" / "dump"
    monkeypatch.setenv("TVMQUANT_DUMP", str(folder))
    found = levels()
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}.py" for name in PHASES]
    for name, module in found.items():
        assert (folder / f"{name}.py").read_text() == module.script(show_meta=False)


def test_nothing_is_dumped_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TVMQUANT_DUMP", raising=False)
    monkeypatch.chdir(tmp_path)
    pipeline.canonicalize(network())
    assert not list(tmp_path.iterdir())


def test_phases_lead_from_float_to_kernels_with_a_batch() -> None:
    found = levels()
    for module in found.values():
        relax.analysis.well_formed(module)
    integer = {
        name: pipeline.has_integer_operators(found[name]) for name in ("1-canonical", "4-integer")
    }
    assert integer == {"1-canonical": False, "4-integer": True}
    assert [int(v) for v in found["5-kernels"]["main"].params[0].ty.shape] == [2, 3, 6, 6]
    assert {str(v.name_hint) for v in found["6-entries"].get_global_vars()} >= {"main", "raw"}
