"""The one loop that every recipe trains in."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from tvmquant.bit_choice import BitChoice
from tvmquant.calibration import Calibration
from tvmquant.errors import TrainingError
from tvmquant.graph import Graph
from tvmquant.progress import Progress, Stage, silent_stage
from tvmquant.sensitivity.loss import LEAST_SOFTMAX
from tvmquant.sensitivity.structure import SOFTMAX
from tvmquant.training import distributed
from tvmquant.training.augmentation import user_callable
from tvmquant.training.checkpoint import Checkpoint
from tvmquant.training.checks import (
    check_batch,
    check_classifier,
    check_labels,
    check_teacher,
    check_validation,
)
from tvmquant.training.items import Items, batches_of, seed_of, steps_of
from tvmquant.training.memory import keep_freed_memory
from tvmquant.training.method import Batch, Method
from tvmquant.training.methods import method_of
from tvmquant.training.objective import top1
from tvmquant.training.optimizer import make_optimizer
from tvmquant.training.recipe import Recipe
from tvmquant.twin import Twin

History = list[dict[str, float]]
OnEpoch = Callable[[int, dict[str, float]], None]
OnStep = Callable[[dict[str, float]], None]

# Between checkpoints within an epoch.
SECONDS_BETWEEN: Final = 300.0


@dataclass
class Training:
    """Networks, data and a recipe.

    Parameters
    ----------
    graph : Graph
        Level L0.
    calibration : Calibration
        With ``fold_batch_norm`` as the recipe has it.
    choices : mapping of str to BitChoice
        Of the layers, w8a8 where not named.
    twin : Twin
        Of the graph, calibrated for these choices; trained in place.
    teacher : Twin
        The float network.
    ends : tuple of str
        The operators that compute the twin's and the teacher's output (`sensitivity.structure`).
    recipe : Recipe
    items : Items
    validation : Items, optional
        With labels; without, the exact twin is not evaluated.
    device : torch.device
        Of the twin and the teacher; integers are validated on the CPU.
    binarized : tuple of str
        Layers that the recipe made binary.

    Attributes
    ----------
    method : Method
        The recipe's.
    history : list of dict
        Of every epoch: ``loss`` and, where there are labels, ``top1_training`` (of batches while
        training, percent); what the method validates, such as ``top1`` of the exact twin on the
        validation items, and what it has learned; ``items_per_second``, ``minutes`` and
        ``cpu_minutes`` of all threads of this process.
    """

    graph: Graph
    calibration: Calibration
    choices: Mapping[str, BitChoice]
    twin: Twin
    teacher: Twin
    ends: tuple[str, str]
    recipe: Recipe
    items: Items
    validation: Items | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    binarized: tuple[str, ...] = ()
    method: Method = field(init=False)
    history: History = field(default_factory=list)

    def __post_init__(self) -> None:
        self.method = method_of(self.recipe)(self)
        self.phase = self.recipe
        self._network: torch.nn.Module = self.twin
        self._classes: int | None = None

    def run(
        self, path: Path, identity: dict[str, str], stage: Stage = silent_stage,
        on_epoch: OnEpoch = lambda _epoch, _found: None,
        on_step: OnStep = lambda _found: None,
    ) -> History:  # fmt: skip
        """Train, from the checkpoint at a path if there is one.

        Parameters
        ----------
        path : Path
            Written after every epoch, and within long ones.
        identity : dict of str to str
            As of `Checkpoint`.
        stage : Stage
            Opened for every epoch.
        on_epoch : callable (epoch, dict)
            Receives the number of every epoch that has ended, from 1, and what is known of it.
        on_step : callable (dict)
            Receives ``loss``, ``top1_training``, ``items_per_second`` of the epoch so far, and
            ``minutes_left`` of the training.

        Raises
        ------
        TrainingError
            When the checkpoint is of another training, or the loss diverges; the last checkpoint
            is kept.
        """
        self.check()
        keep_freed_memory()
        checkpoint = Checkpoint(path, identity)
        saved = checkpoint.phase()
        end = 0
        for number, phase in enumerate(self.recipe.in_phases()):
            self.phase = phase
            start, end = end, end + self.phase.epochs
            if saved is not None and number < saved:
                continue
            self.method.begin(self.phase)
            self.twin.to(self.device)
            self.teacher.to(self.device)
            self.method.state.to(self.device)
            self._network = distributed.shared(self.twin)
            steps = steps_of(self.items, self.phase)
            optimizer, rate = make_optimizer(self.method, self.phase, self.phase.epochs * steps)
            checkpoint.parts = {
                "twin": self.twin, "method": self.method.state, "optimizer": optimizer,
                "rate": rate,
            }  # fmt: skip
            if number == saved:
                self.history = checkpoint.load()
            for epoch in range(len(self.history), end):
                with stage(f"epoch {epoch + 1} of {self.recipe.epochs}") as progress:
                    found = self._epoch(_Place(number, start, epoch), checkpoint, progress, on_step)
                found |= self.method.learned()
                if self.validation is not None:
                    with stage("validate"):
                        found |= self.validated()
                self.history.append(found)
                self._save(checkpoint, number)
                on_epoch(epoch + 1, found)
        self.twin.to("cpu")
        self.method.state.to("cpu")
        self.method.finish()
        return self.history

    def validated(self) -> dict[str, float]:
        """Return what the method knows of the validation items, the same in all processes."""
        first = distributed.rank() == 0
        return distributed.of_the_first(self.method.validated() if first else {})

    def top1_of_integers(self) -> float:
        """Return the exact twin's top-1 on the validation items, in percent."""
        assert self.validation is not None
        self.twin.mode = "exact"
        try:
            return top1(self.twin, self.validation)
        finally:
            self.twin.mode = "quantized"

    def outputs(
        self, inputs: Tensor, network: torch.nn.Module | None = None, *, teacher: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute a network.

        Parameters
        ----------
        inputs : float tensor (N, ...)
        network : Module, optional
            Default: the twin that is trained, or the teacher.
        teacher : bool
            Whether it is the teacher that is computed.

        Returns
        -------
        float tensor (N, classes)
            Logits.
        dict of str to tensor
            The inputs of layers, where the objective has features.
        """
        twin = self.teacher if teacher else self.twin
        features: dict[str, Tensor] = {}
        if self.phase.objective.features:
            twin.observe_input = features.__setitem__
        low = self.phase.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            output = (network or (twin if teacher else self._network))(inputs)
        twin.observe_input = None
        output = output.float()
        logits = output.clamp_min(LEAST_SOFTMAX).log() if self.ends[teacher] == SOFTMAX else output
        return logits, features

    def _epoch(
        self, place: _Place, checkpoint: Checkpoint, progress: Progress, on_step: OnStep
    ) -> dict[str, float]:
        recipe, epoch = self.phase, place.epoch
        optimizer, rate = checkpoint.parts["optimizer"], checkpoint.parts["rate"]
        assert isinstance(optimizer, torch.optim.Optimizer)
        steps = steps_of(self.items, recipe)
        sums = {"loss": 0.0, "right": 0.0, "step": 0.0, "seconds": 0.0, "cpu_seconds": 0.0}
        sums |= checkpoint.partial
        checkpoint.partial = {}
        first = int(sums["step"])
        before, cpu_before = sums["seconds"], sums["cpu_seconds"]
        start, cpu_start, saved = time.perf_counter(), time.process_time(), time.monotonic()
        batches = batches_of(self.items, recipe, epoch, first=first, classes=self._classes)
        with self._trains(recipe):
            for step, (inputs, labels) in enumerate(batches, first):
                torch.manual_seed(seed_of(recipe, epoch, step, distributed.rank()))
                done = ((epoch - place.start) * steps + step) / (recipe.epochs * steps)
                batch = self._batch(inputs, labels, done, epoch, step)
                value, right = self.step(batch, optimizer)
                rate.step()  # type: ignore[attr-defined]
                sums["loss"] += value
                sums["right"] += right
                sums["step"] = step + 1.0
                sums["seconds"] = before + time.perf_counter() - start
                sums["cpu_seconds"] = cpu_before + time.process_time() - cpu_start
                progress(step + 1, steps)
                on_step(self._known(sums) | {"minutes_left": self._left(sums, epoch, steps)})
                if time.monotonic() - saved > SECONDS_BETWEEN and step + 1 < steps:
                    self._save(checkpoint, place.phase, sums)
                    saved = time.monotonic()
        known = {name: distributed.mean(value) for name, value in self._known(sums).items()}
        minutes = {"minutes": sums["seconds"] / 60, "cpu_minutes": sums["cpu_seconds"] / 60}
        return known | minutes

    def _save(
        self, checkpoint: Checkpoint, phase: int, partial: dict[str, float] | None = None
    ) -> None:
        """Write the checkpoint, unless going on from it would be of no use."""
        for name, parameter in self.twin.named_parameters():
            if not bool(parameter.isfinite().all()):
                raise self._diverged(f"the parameter {name!r} is not finite")
        checkpoint.save(self.history, phase, partial)

    def _diverged(self, what: str) -> TrainingError:
        return TrainingError(
            f"{what}; lower optimizer.lr (now {self.phase.optimizer.lr:g}) and train into another "
            "folder; the last checkpoint is kept"
        )

    def _known(self, sums: dict[str, float]) -> dict[str, float]:
        steps = sums["step"]
        count = steps * self.phase.batch_size
        known = {"loss": sums["loss"] / steps, "items_per_second": count / sums["seconds"]}
        if self.items.labels is not None:
            known["top1_training"] = 100.0 * sums["right"] * distributed.size() / count
        return known

    def _left(self, sums: dict[str, float], epoch: int, steps: int) -> float:
        left = (self.recipe.epochs - epoch) * steps - sums["step"]
        return sums["seconds"] / sums["step"] * left / 60

    def _batch(
        self, inputs: Tensor, labels: Tensor | None, done: float, epoch: int, step: int
    ) -> Batch:
        inputs = inputs.to(self.device)
        labels = None if labels is None else labels.to(self.device)
        objective, teacher, features = self.phase.objective, None, dict[str, Tensor]()
        if objective.is_taught:
            with torch.no_grad():
                teacher, features = self._taught(inputs)
        return Batch(inputs, labels, teacher, features, done, epoch, step)

    def _taught(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self.phase.objective.teacher == "float":
            return self.outputs(inputs, teacher=True)
        live, self.twin.live_batch_norm, self.twin.mode = self.twin.live_batch_norm, False, "float"
        try:
            return self.outputs(inputs, self.twin)
        finally:
            self.twin.live_batch_norm, self.twin.mode = live, "quantized"

    def step(self, batch: Batch, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
        """Train one step; return the mean loss of its passes, and how many items are right."""
        optimizer.zero_grad()
        losses, right = [], []
        for value, logits in self.method.losses(batch):
            losses.append(float(value.detach()))
            if not math.isfinite(losses[-1]):
                where = f"in step {batch.step + 1} of epoch {batch.epoch + 1}"
                raise self._diverged(f"the loss is {losses[-1]} {where}")
            value.backward()  # type: ignore[no-untyped-call]
            if batch.labels is not None:
                labels = batch.labels if batch.labels.ndim == 1 else batch.labels.argmax(1)
                right.append(int((logits.argmax(1) == labels).sum()))
        self.method.before_step(batch)
        if self.phase.optimizer.most_norm is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.phase.optimizer.most_norm)
        optimizer.step()
        self.method.after_step(batch)
        return sum(losses) / len(losses), sum(right) / max(len(right), 1)

    @contextlib.contextmanager
    def _trains(self, recipe: Recipe) -> Iterator[None]:
        """Let normalizations and torch's random numbers be as they are while training."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            self.twin.live_batch_norm = recipe.batch_norm == "live"
            try:
                yield
            finally:
                self.twin.live_batch_norm = False

    def check(self) -> None:
        """Refuse data that do not fit the network or the recipe, before anything slow.

        Raises
        ------
        TrainingError
        """
        inputs = self.items.inputs[:1]
        with torch.no_grad():
            output = self.twin(inputs)
        check_validation(self.validation, output)
        if self.recipe.epochs == 0:
            return
        check_classifier(output)
        self._classes = output.shape[1]
        for recipe in self.recipe.in_phases():
            check_labels(self.items, output.shape[1], recipe.objective)
            user_callable(recipe.augmentation)
            if recipe.objective.is_taught and recipe.objective.teacher == "float":
                check_teacher(self.twin, self.teacher, inputs, recipe.objective)
            check_batch(self.items, recipe, self.twin)
        self.method.check()


@dataclass(frozen=True)
class _Place:
    """The number of a phase, its first epoch, and the epoch that is trained."""

    phase: int
    start: int
    epoch: int
