"""One network, its data and its target, and the stages between an ONNX file and a library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmquant.bit_choice import W8A8
from tvmquant.data import Dataset, Preprocess
from tvmquant.errors import DataError
from tvmquant.machine import Machine
from tvmquant.progress import Clock, Progress
from tvmquant.session.options import Options
from tvmquant.stage_cache import record_name, taken_up

if TYPE_CHECKING:
    from tvmquant.allocation import Plan
    from tvmquant.calibration import Calibration
    from tvmquant.deploy.manifest import Manifest
    from tvmquant.devices.tracker import Tracker
    from tvmquant.graph import Graph
    from tvmquant.mixed_precision import MixedPrecisionRecord, Wishes
    from tvmquant.mixed_precision.choose import Chosen
    from tvmquant.output_quality import OutputQuality
    from tvmquant.reconstructed import Reconstructed
    from tvmquant.training import Recipe
    from tvmquant.tuning import Database

# Stands for the data of a model that brings its scales.
NO_DATA = "none"
# The name of the stage, its files, and what the manifest says of them.
RECONSTRUCTION = "reconstruction"
# Items that the finished library and the float model are compared on.
COMPARED = 8


@dataclass(frozen=True, kw_only=True)
class Session:
    """What is compiled, and for what; made by `open_session`.

    Parameters
    ----------
    path : Path
        The ONNX file.
    graph : Graph
        Level L0.
    data : Dataset, optional
        To calibrate with; None where the model brings its scales, or ranges are found at run time.
    recipe : Preprocess
        How its images are read.
    folder : Path
        Where stages keep their results.
    machine : Machine
    batch : int
        As of `tvmquant.build`.
    input_shapes : dict
        As of `tvmquant.load_onnx`.
    clock : Clock
        Times the stages and shows them.
    options : Options
    wishes : Wishes, optional
        Budgets that bit widths are chosen for.
    given : Plan, optional
        Bit widths that are given instead.
    table : Database, optional
        Measurements of kernels, as they are when the session opens.
    tune_seconds : float, optional
        Measure for so long first.
    tracker : Tracker, optional
        Whose devices measure; default: this machine does.
    requantize : bool
        As of `tvmquant.load_onnx`.
    width : int
        Bits of the network, where the library is to have several widths.
    narrower : mapping of int to Graph
        Level L0: the other widths.
    reconstruction : Recipe, optional
        How weights of few bits are rounded anew (`tvmquant.reconstruct`).
    """

    path: Path
    graph: Graph
    data: Dataset | None
    recipe: Preprocess
    folder: Path
    machine: Machine
    batch: int
    input_shapes: Mapping[str, tuple[int | None, ...]]
    clock: Clock
    options: Options = field(default_factory=Options)
    wishes: Wishes | None = None
    given: Plan | None = None
    table: Database | None = None
    tune_seconds: float | None = None
    tracker: Tracker | None = None
    requantize: bool = False
    width: int = 0
    narrower: Mapping[int, Graph] = field(default_factory=dict)
    reconstruction: Recipe | None = None

    @cached_property
    def rounding(self) -> dict[str, Any]:
        """Arguments of `tvmquant.quantize`, but for ``strict``."""
        return self.options.rounding(self.machine)

    @cached_property
    def data_fingerprint(self) -> str | None:
        """Of the data; None where they can be read only once."""
        return NO_DATA if self.data is None else self.data.fingerprint()

    @property
    def calibration(self) -> Calibration | None:
        """The range of every activation; None where there are no data."""
        return self._calibration[0]

    @property
    def calibration_cached(self) -> bool:
        """Whether an earlier session had calibrated."""
        return self._calibration[1]

    @cached_property
    def _calibration(self) -> tuple[Calibration | None, bool]:
        from tvmquant.calibration import Calibration
        from tvmquant.quantization import calibrate

        data = self.data
        if data is None:
            return None, False
        options = self.options.calibration
        with self.clock.stage("calibrate") as progress:
            return taken_up(
                self.folder if self.data_fingerprint is not None else None,
                "calibration",
                Calibration,
                [self.graph.fingerprint(), self.data_fingerprint, options],
                lambda: calibrate(self.graph, data, progress=progress, **options),
            )

    @cached_property
    def database(self) -> Database | None:
        """The table, with what was measured first where that was asked for."""
        if self.table is None or self.tune_seconds is None:
            return self.table
        from tvmquant.tuning.tune import tune

        calibration, seconds = self.calibration, self.tune_seconds
        planned = self.given.choices.values() if self.given else [W8A8]
        with self.clock.stage("tune") as progress:
            tuned = tune(
                self.graph, self.table.folder, target=self.machine,
                choices=self.wishes.measured if self.wishes else planned,
                calibration=calibration, batch=self.batch, seconds=seconds,
                rpc=self.tracker, quantize_options=self.rounding,
                progress=lambda state: progress(round(state.elapsed), round(seconds)),
            )  # fmt: skip
        if tuned.tuning.interrupted:
            raise KeyboardInterrupt  # what was measured is kept
        return tuned.database

    @cached_property
    def tilings(self) -> Any:
        """Tilings of kernels as `tvmquant.build` takes them; None: the analytic ones."""
        return None if self.database is None else self.database.tilings()

    @cached_property
    def chosen(self) -> Chosen | None:
        """What the wishes led to; None where there are none."""
        if self.wishes is None:
            return None
        from tvmquant.mixed_precision.choose import Setup, choose_plan

        if self.calibration is None or self.data is None:
            raise DataError("bit widths are chosen by what narrower ones cost on data; pass --data")
        setup = Setup(
            self.graph, self.calibration, self.data, self.machine, self.batch, self.tilings,
            _state(self.database) or "", self.rounding, self.tracker, self.reconstruction,
        )  # fmt: skip
        return choose_plan(setup, self.wishes, self.folder, self.clock.stage)

    @property
    def plan(self) -> Plan | None:
        """The bit widths, chosen or given; None where every layer has 8 bits."""
        return self.given if self.chosen is None else self.chosen.plan

    @property
    def _reconstruction_of(self) -> list[Any]:
        """What a reconstruction follows from, as JSON values."""
        assert self.calibration is not None
        assert self.reconstruction is not None
        choices = self.plan.choices if self.plan else {}
        return [
            self.graph.fingerprint(), self.data_fingerprint, self.calibration.model_dump_json(),
            sorted((name, str(choice)) for name, choice in choices.items()), self.rounding,
            self.reconstruction.model_dump_json(),
        ]  # fmt: skip

    @cached_property
    def reconstructed(self) -> Reconstructed | None:
        """The weights that were rounded anew; None where that is not asked for.

        Nor where bit widths were chosen, and no weight got so few.
        """
        if self.reconstruction is None:
            return None
        from tvmquant.reconstructed import Reconstructed
        from tvmquant.training.reconstruct import is_narrow, reconstruct

        calibration, plan, recipe = self.calibration, self.plan, self.reconstruction
        assert calibration is not None  # opening the session has seen to that
        if plan is not None and self.wishes is not None and not is_narrow(plan.choices, recipe):
            return None
        with self.clock.stage("reconstruct") as progress:
            return taken_up(
                self.folder,
                RECONSTRUCTION,
                Reconstructed,
                self._reconstruction_of,
                lambda: reconstruct(
                    self.graph, self.data, calibration, out=self.folder, recipe=recipe,
                    choices=plan.choices if plan else None, progress=progress, **self.rounding,
                ),
            )[0]  # fmt: skip

    @cached_property
    def quantized(self) -> Graph:
        """The integer graph (L2)."""
        from tvmquant.quantization import quantize

        calibration, plan = self.calibration, self.plan
        reconstruction = self.reconstructed
        with self.clock.stage("quantize"):
            return quantize(
                self.graph,
                calibration,
                choices=plan.choices if plan else None,
                strict=self.options.strict,
                reconstruction=reconstruction,
                **self.rounding,
            )

    def _at_all_widths(self) -> Graph | dict[int, Graph]:
        """Return the integer graph, or those of all widths."""
        from tvmquant.quantization import quantize

        if not self.narrower:
            return self.quantized
        options = {"strict": self.options.strict, **self.rounding}
        others = {width: quantize(graph, **options) for width, graph in self.narrower.items()}
        return {self.width: self.quantized, **others}

    def settings(self, *, tuned: bool) -> dict[str, Any]:
        """Return all that a library follows from, as JSON values.

        Parameters
        ----------
        tuned : bool
            With the measurements after tuning, not those that the session found.
        """
        database = self.database if tuned else self.table
        given = self.given
        return {
            "graph": self.graph.fingerprint(),
            "data": self.data_fingerprint,
            "calibration": self.options.calibration,
            "quantization": {**self.rounding, "strict": self.options.strict},
            "target": self.machine.options,
            "threads": self.machine.threads,
            "device": self.tracker.name if self.tracker else None,
            "batch": self.batch,
            "requantize": self.requantize,
            "input_shapes": {name: list(shape) for name, shape in self.input_shapes.items()},
            "wishes": self.wishes.settings() if self.wishes else None,
            "plan": {name: layer.choice for name, layer in given.layers.items()} if given else None,
            "table": _state(database),
        } | self._rarer_settings()

    def _rarer_settings(self) -> dict[str, Any]:
        graphs = {str(width): graph.fingerprint() for width, graph in self.narrower.items()}
        how = self.reconstruction
        return {
            **({"narrower": graphs} if graphs else {}),
            **({RECONSTRUCTION: how.model_dump(mode="json")} if how else {}),
        }

    def build(self, *, force: bool) -> tuple[Manifest, tuple[str, ...]]:
        """Build the library into the folder.

        Returns
        -------
        Manifest
        tuple of str
            Layers of which the table has no measurement, so that they took the analytic tiling.
        """
        from tvmquant.deploy.build import build
        from tvmquant.deploy.manifest import file_sha256
        from tvmquant.session.library_folder import replace_plan
        from tvmquant.tuning.database import noting

        tilings, quantized, settings = (
            self.tilings,
            self._at_all_widths(),
            self.settings(tuned=True),
        )
        untuned: list[str] = []
        with self.clock.stage("build"):
            manifest = build(
                quantized,
                target=self.machine,
                out=self.folder,
                batch=self.batch,
                force=force,
                model={
                    "path": str(self.path.absolute()),
                    "sha256": file_sha256(self.path),
                    "bytes": self.path.stat().st_size,
                    "settings": settings,
                    **self._reconstruction_file(),
                },
                preprocess=self.recipe.model_dump(mode="json"),
                tilings=None if tilings is None else noting(tilings, untuned),
            )
            replace_plan(self.folder, self.plan)
        return manifest, tuple(untuned)

    def _reconstruction_file(self) -> dict[str, str]:
        """Return where the integers of weights are kept, for who opens the library again."""
        if self.reconstructed is None:
            return {}
        from tvmquant.reconstructed import Reconstructed

        return {RECONSTRUCTION: record_name(RECONSTRUCTION, Reconstructed, self._reconstruction_of)}

    def compare(self, manifest: Manifest) -> tuple[OutputQuality, ...]:
        """Compare the library with the float model on a few items, and keep what that finds.

        Where the library does not run here, the tracker's device runs it. Empty where there are no
        data or they can be read only once, or nothing runs the library.
        """
        if self.data is None or self.data_fingerprint is None:
            return ()  # calibrating has read them, once and for all
        with self.clock.stage("compare") as progress:
            return self._compare(manifest, self.data, progress)

    def _compare(
        self, manifest: Manifest, data: Dataset, progress: Progress
    ) -> tuple[OutputQuality, ...]:
        from tvmquant.deploy.loader import load, obstacle
        from tvmquant.deploy.remote import open_device
        from tvmquant.devices.cpu import CpuDevice
        from tvmquant.evaluation import compare_outputs
        from tvmquant.output_record import OUTPUTS_NAME, OutputRecord

        step = max(1, len(data) // COMPARED) if data.has_length else 1
        few = data.subset(step=step, limit=COMPARED)
        runs_here = obstacle(manifest, CpuDevice()) is None
        if not runs_here and self.tracker is None:
            return ()
        with open_device(None if runs_here else self.tracker, self.machine) as device:
            model = load(self.folder, device=device)
            count, outputs = compare_outputs(model, few, self.graph, progress)
        record = OutputRecord.of(manifest.library["sha256"], count, outputs)
        record.save(self.folder / OUTPUTS_NAME)
        return outputs

    def measure(self) -> MixedPrecisionRecord | None:
        """Time the library that was built from a chosen plan, and keep what led to it."""
        if self.chosen is None:
            return None
        from tvmquant.benchmark import measure, random_inputs
        from tvmquant.deploy.loader import load
        from tvmquant.deploy.remote import open_device
        from tvmquant.mixed_precision import RECORD_NAME
        from tvmquant.mixed_precision.choose import make_record

        with (
            self.clock.stage("measure") as progress,
            open_device(self.tracker, self.machine) as device,
        ):
            model = load(self.folder, device=device)
            latency = measure(model, random_inputs(model.inputs), progress=progress)
            record = make_record(self.chosen, latency.median_ms)
            record.save(self.folder / RECORD_NAME)
        return record


def _state(database: Database | None) -> str | None:
    """Tell measurements apart: a file of them only ever grows."""
    return None if database is None else f"{database.path.absolute()}, {len(database)} records"
