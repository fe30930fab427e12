"""Which room may use which: dependencies point one way, and no room knows more than it needs.

A room is a folder or a module of the package: ``tvmquant/cli``, ``tvmquant/graph.py``, ``passes``.
"""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {"tvmquant": "tvmquant", "passes": "tvmquant.passes", "schedules": "tvmquant.schedules"}
# Rooms inside of rooms.
INNER = ("schedules.isa", "schedules.families")

# What every room above these may import.
BASE = {
    "atomic_write", "default_choices", "errors", "formats", "model_metadata", "progress", "records",
}  # fmt: skip
# What else each room may import, from the lowest to the front door. A name here is a decision:
# before adding one, ask whether what you need belongs further down.
MAY_IMPORT = {
    # without a room below
    "errors": set(),
    "progress": set(),
    "atomic_write": set(),
    "model_metadata": set(),
    "tvm_compat": set(),
    "entries": set(),
    "records": {"atomic_write", "errors"},
    # numbers
    "default_choices": set(),
    "formats": {"errors"},
    "arithmetic": set(),
    "resize": {"arithmetic"},
    "run_layout": {"arithmetic"},
    "weight_pairs": {"arithmetic", "run_layout"},
    "quantizer": {"run_layout"},
    "bit_choice": set(),
    # what machines are
    "devices": set(),
    "target_presets": set(),
    "target": {"devices", "target_presets"},
    "machine": {"devices", "target"},
    # kernels
    "schedules.isa": {"tvm_compat"},
    "schedules": {"schedules.isa", "machine", "resize", "run_layout", "tvm_compat"},
    "schedules.families": {"bit_choice", "schedules", "schedules.isa", "machine"},
    "target_description": {"schedules.isa", "target", "target_presets"},
    # graphs and their rewrites
    "ir": set(),
    "passes": {
        "arithmetic", "bit_choice", "entries", "ir", "machine", "quantizer", "resize", "schedules",
        "schedules.families", "schedules.isa", "weight_pairs",
    },
    "data": set(),
    "graph": {"data"},
    "levels": {"graph", "passes"},
    "layers": {"bit_choice", "graph", "ir", "levels", "passes", "schedules.families"},
    "frontend": {"graph", "ir", "passes"},
    # what runs a graph
    "simulator": {"arithmetic", "ir", "passes", "resize"},
    "twin": {"arithmetic", "ir", "passes", "resize", "weight_pairs"},
    # what other runtimes run
    "export": {
        "allocation", "arithmetic", "bit_choice", "data", "graph", "ir", "passes", "resize",
        "simulator", "weight_pairs",
    },
    # networks of one bit, to be trained with torch and exported
    "nn": set(),
    # from float to integers
    "calibration": {
        "arithmetic", "data", "graph", "ir", "passes", "quantizer", "twin", "weight_pairs",
    },
    "reconstructed": {"arithmetic", "graph", "passes"},
    "quantization": {
        "bit_choice", "calibration", "graph", "layers", "levels", "passes", "reconstructed",
    },
    "random_calibration": {"calibration", "graph", "quantization"},
    # from a graph to a library, and back
    "deploy": {
        "arithmetic", "bit_choice", "devices", "entries", "graph", "ir", "levels", "machine",
        "passes", "schedules", "schedules.families", "target",
    },
    "inspection": {
        "deploy", "graph", "layers", "machine", "passes", "quantization", "random_calibration",
        "schedules.isa",
    },
    "benchmark": {"deploy", "devices"},
    "output_blocks": {"graph", "ir", "passes"},
    "output_quality": {"output_blocks"},
    "output_record": {"deploy", "output_quality"},
    "evaluation": {"data", "graph", "output_blocks", "output_quality", "twin"},
    # which bits, and what they take
    "stage_cache": set(),
    "allocation": {"bit_choice", "layers"},
    "sensitivity": {
        "bit_choice", "calibration", "data", "graph", "ir", "layers", "passes", "quantization",
        "quantizer", "reconstructed", "stage_cache", "twin",
    },
    "tuning": {
        "bit_choice", "calibration", "deploy", "devices", "graph", "ir", "layers", "machine",
        "passes", "quantization", "random_calibration", "schedules.families", "schedules.isa",
        "target",
    },
    "network_latency": {
        "benchmark", "bit_choice", "calibration", "deploy", "devices", "graph", "layers", "machine",
        "quantization", "tuning",
    },
    "mixed_precision": {
        "allocation", "bit_choice", "calibration", "data", "devices", "graph", "layers", "machine",
        "network_latency", "sensitivity", "stage_cache", "training", "tuning",
    },
    # accuracy trained back
    "training": {
        "allocation", "bit_choice", "calibration", "data", "graph", "ir", "layers", "levels", "nn",
        "passes", "quantization", "reconstructed", "sensitivity", "stage_cache", "twin",
    },
    # the front door
    "report": {
        "allocation", "benchmark", "bit_choice", "deploy", "mixed_precision", "output_quality",
        "output_record",
    },
    "session": {
        "allocation", "benchmark", "bit_choice", "calibration", "data", "deploy", "devices",
        "evaluation", "frontend", "graph", "layers", "levels", "machine", "mixed_precision",
        "output_quality", "output_record", "quantization", "quantizer", "reconstructed",
        "schedules.isa", "stage_cache", "training", "tuning",
    },
    "compilation": {
        "allocation", "data", "deploy", "devices", "mixed_precision", "output_quality",
        "reconstructed", "session", "training",
    },
    "demo": {"benchmark", "compilation", "data", "deploy", "evaluation", "frontend"},
    "cli": {
        "allocation", "benchmark", "bit_choice", "compilation", "data", "demo", "deploy", "devices",
        "evaluation", "export", "frontend", "graph", "inspection", "machine", "mixed_precision",
        "output_quality", "reconstructed", "report", "sensitivity", "session", "target",
        "target_description", "target_presets", "training",
        "tuning",
    },
    "__main__": {"cli"},
}  # fmt: skip


def sources():
    """Yield (module, file) of the package; the front door, which names everything, excepted."""
    for directory, package in SOURCES.items():
        for path in sorted((ROOT / directory).rglob("*.py")):
            parts = path.relative_to(ROOT / directory).with_suffix("").parts
            module = ".".join((package, *parts)).removesuffix(".__init__")
            if module != "tvmquant":
                yield module, path


MODULES = dict(sources())


def room_of(module: str) -> str:
    name = module.removeprefix("tvmquant.")
    inner = next((room for room in INNER if f"{name}.".startswith(f"{room}.")), None)
    return inner or name.split(".")[0]


def imported(path: Path) -> set[str]:
    """Return the modules of the package that a file imports anywhere, for types too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import; import absolutely"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "tvmquant":
                # of a package it may be a member that is no module
                while name not in MODULES and name != "tvmquant":
                    name = name.rpartition(".")[0]
                found.add(name)
    return found


@pytest.mark.parametrize("room", sorted({room_of(module) for module in MODULES}))
def test_a_room_uses_only_the_rooms_that_it_may(room):
    assert room in MAY_IMPORT, f"{room} is a new room; say in this file what it may import"
    allowed = {room, *MAY_IMPORT[room], *(() if room in BASE else BASE)}
    for module, path in MODULES.items():
        if room_of(module) == room:
            used = {room_of(other) for other in imported(path)}
            assert used <= allowed, f"{path} uses {sorted(used - allowed)}"


def test_dependencies_point_one_way():
    graphlib.TopologicalSorter(MAY_IMPORT).prepare()


def test_rooms_that_are_gone_are_not_listed():
    rooms = {room_of(module) for module in MODULES}
    listed = MAY_IMPORT.keys() | set().union(*MAY_IMPORT.values())
    assert listed <= rooms
