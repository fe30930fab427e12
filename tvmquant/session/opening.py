"""Open a session: everything that can be refused is refused here, before the slow stages."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmquant.data import Dataset, Preprocess, open_data
from tvmquant.data.preprocess import PreprocessLike
from tvmquant.devices.tracker import Tracker
from tvmquant.errors import AllocationError, DataError
from tvmquant.machine import Machine
from tvmquant.progress import Clock
from tvmquant.session.options import Options
from tvmquant.session.reconstruction import how_to_reconstruct
from tvmquant.session.session import Session
from tvmquant.session.width_files import (
    check_as_trained,
    check_scales,
    models_at_widths,
    network_name,
)

if TYPE_CHECKING:
    from tvmquant.allocation import Plan
    from tvmquant.graph import Graph
    from tvmquant.mixed_precision import Wishes
    from tvmquant.training import Recipe
    from tvmquant.tuning import Database

# More images hardly move the ranges, which are extremes or histograms over every pixel of them.
DEFAULT_SAMPLES = 512


def open_session(
    path: str | os.PathLike[str],
    data: Any,
    *,
    folder: Path,
    clock: Clock,
    preprocess: PreprocessLike,
    select: str | Mapping[str, Any] | None,
    samples: int | None,
    input_shapes: Mapping[str, Sequence[int | None]] | None,
    target: str,
    threads: int | None,
    batch: int,
    table: str | os.PathLike[str] | None,
    tune_seconds: float | None,
    wishes: Wishes | None,
    plan: str | os.PathLike[str] | None = None,
    options: Options | None = None,
    requantize: bool = False,
    rpc: str | Tracker | None = None,
    rpc_key: str | None = None,
    choice: str | None = None,
    reconstruct: bool | str | Path | Recipe = False,
) -> Session:
    """Load the network, open its data, and refuse whatever the slow stages could not use.

    Parameters are those of `tvmquant.compile_onnx` and `Session`.

    Raises
    ------
    TVMQuantError
        When the file, the data, the target or an option is wrong.
    """
    from tvmquant.deploy.compiler import find_linker
    from tvmquant.deploy.destination import TABLE_NAME
    from tvmquant.deploy.remote import check_machine
    from tvmquant.frontend import load_onnx

    options, path = options or Options(), Path(path)
    said: dict[str, Any] = {"the plan": plan, "the choice of all layers": choice, "budgets": wishes}
    twice = [name for name, given in said.items() if given is not None]
    if len(twice) > 1:
        raise AllocationError(
            f"{twice[0]} already says the bit widths; leave out either {' or '.join(twice)}"
        )
    recipe = Preprocess.parse(preprocess)
    tracker = Tracker.of(rpc, rpc_key)
    if tune_seconds is not None:
        table = table or folder / TABLE_NAME
    # mistakes of the file are told before TVM is loaded
    shapes = {name: tuple(shape) for name, shape in (input_shapes or {}).items()}
    files = models_at_widths(path)
    if len(files) > 1:
        said |= {"--reconstruct": reconstruct or None, "--requantize": requantize or None}
        asked = [name for name, given in said.items() if given is not None]
        check_as_trained(path, files, asked)
    graphs = {
        width: load_onnx(
            file, input_shapes=shapes or None, name=network_name(files), requantize=requantize
        )
        for width, file in files.items()
    }
    if len(graphs) > 1:
        check_scales(graphs, files)
    widest, *_ = graphs
    path, graph = files[widest], graphs.pop(widest)

    options.check()
    machine = Machine.of(target, threads, remote=tracker is not None)
    find_linker(machine.target)
    dataset = _open_calibration_data(graph, data, recipe, select, samples, options)
    given = None
    if wishes is not None or plan is not None or choice is not None:
        _check_free(graph)
    if plan is not None:
        given = _read_plan(plan, graph)
    elif choice is not None:
        given = _uniform_plan(choice, graph)
    if wishes is not None:
        _check_wishes(graph, wishes)
    if wishes is not None or tune_seconds is not None:
        check_machine(machine, tracker)
    return Session(
        path=path, graph=graph, data=dataset, recipe=recipe, folder=folder, machine=machine,
        batch=batch, input_shapes=shapes, clock=clock, options=options, requantize=requantize,
        wishes=wishes, given=given, tune_seconds=tune_seconds,
        table=_open_table(table, machine, tracker, create=tune_seconds is not None),
        tracker=tracker, width=widest, narrower=graphs,
        reconstruction=how_to_reconstruct(reconstruct, graph, dataset, given, wishes),
    )  # fmt: skip


def _uniform_plan(choice: str, graph: Graph) -> Plan:
    """Return the plan that gives all layers but the ends a choice, or what is nearest to it."""
    from tvmquant.allocation import Plan
    from tvmquant.bit_choice import BitChoice
    from tvmquant.layers import quantizable_layers, uniform_choices

    choices = uniform_choices(quantizable_layers(graph), BitChoice.parse(choice))
    layers = {name: {"choice": str(taken)} for name, taken in choices.items()}
    return Plan.model_validate(
        {"model": graph.name, "fingerprint": graph.fingerprint(), "layers": layers}
    )


def _check_free(graph: Graph) -> None:
    """Reject budgets and plans of a model that is quantized already."""
    from tvmquant.layers import is_quantized, quantizable_layers

    for layer in quantizable_layers(graph) if is_quantized(graph) else ():
        if layer.imported is not None:
            raise AllocationError(
                f"the model {graph.name!r} is quantized already: layer {layer.id!r} has "
                f"{layer.imported}; pass --requantize (requantize=True) to choose bit widths anew, "
                "or leave budgets, choices and the plan out"
            )


def _open_calibration_data(
    graph: Graph, data: Any, recipe: Preprocess, select: Any, samples: int | None, options: Options
) -> Dataset | None:
    if data is None:
        from tvmquant.layers import is_quantized

        if options.dynamic or is_quantized(graph):
            return None
        raise DataError(
            "a float model needs data to calibrate with; pass --data a folder or .tar of images "
            "(with --preprocess, how the model wants them), or a .npy or .npz of inputs of shape "
            "(N, ...); or --dynamic, to find ranges at run time"
        )
    dataset = open_data(data, recipe, inputs=graph.item_inputs(), select=select)
    if samples is None:
        return dataset
    if samples < 1:
        raise DataError(f"samples = {samples}; expected at least 1")
    step = max(1, len(dataset) // samples) if dataset.has_length else 1
    return dataset.subset(step=step, limit=samples)


def _read_plan(path: str | os.PathLike[str], graph: Graph) -> Plan:
    """Return a plan for the graph, with no more predictions than hold for an edited one too."""
    from tvmquant.allocation import Plan
    from tvmquant.allocation.costs import Costs
    from tvmquant.layers import quantizable_layers

    plan = Plan.load(path)
    layers = quantizable_layers(graph)
    plan.check(layers, graph.fingerprint())
    costs, choices = Costs(), plan.choices
    known = {name: costs.total(name, layers, choices) for name in ("size", "bops")}
    return plan.model_copy(update={"predicted": known})


def _check_wishes(graph: Graph, wishes: Wishes) -> None:
    from tvmquant.layers import quantizable_layers
    from tvmquant.mixed_precision.choose import check_wishes

    check_wishes(quantizable_layers(graph), wishes)


def _open_table(
    table: str | os.PathLike[str] | None, machine: Machine, tracker: Tracker | None, *, create: bool
) -> Database | None:
    if table is None:
        return None
    from tvmquant.tuning import Database

    return Database(table, machine, create=create, cpu=tracker.name if tracker else "")
