"""The one loop that every recipe trains in."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tvmquant.errors import TrainingError
from tvmquant.progress import Stage, silent_stage
from tvmquant.sensitivity.loss import LEAST_SOFTMAX
from tvmquant.sensitivity.structure import SOFTMAX
from tvmquant.training.checkpoint import Checkpoint
from tvmquant.training.items import Items, batches_of, seed_of, steps_of
from tvmquant.training.objective import (
    check_classifier,
    check_labels,
    check_validation,
    loss,
    top1,
)
from tvmquant.training.quantizers import TrainedQuantizer
from tvmquant.training.recipe import Recipe
from tvmquant.twin import Twin

History = list[dict[str, float]]
OnEpoch = Callable[[int, dict[str, float]], None]


@dataclass
class Training:
    """Networks, data and a recipe.

    Parameters
    ----------
    twin : Twin
        Of a calibrated graph; trained in place.
    quantizers : list of TrainedQuantizer
        Those of its that are trained.
    teacher : Twin
        The float network.
    end : str
        The operator that computes the network's output (`sensitivity.structure`).
    recipe : Recipe
    items : Items
    validation : Items, optional
        With labels; without, the exact twin is not evaluated.
    """

    twin: Twin
    quantizers: list[TrainedQuantizer]
    teacher: Twin
    end: str
    recipe: Recipe
    items: Items
    validation: Items | None = None
    history: History = field(default_factory=list)

    def run(
        self, path: Path, identity: dict[str, str], stage: Stage = silent_stage,
        on_epoch: OnEpoch = lambda _epoch, _found: None,
    ) -> History:  # fmt: skip
        """Train, from the checkpoint at a path if there is one.

        Parameters
        ----------
        path : Path
            Written after every epoch.
        identity : dict of str to str
            As of `Checkpoint`.
        stage : Stage
            Opened for every epoch.
        on_epoch : callable (epoch, dict)
            Receives the number of every epoch that has ended, from 1, and what is known of it.

        Returns
        -------
        list of dict
            Of every epoch: ``loss`` and ``top1_training`` (of batches while training, percent),
            ``top1`` of the exact twin on the validation items, ``items_per_second``.

        Raises
        ------
        TrainingError
            When the data do not fit, the checkpoint is of another training, or the loss diverges;
            the last checkpoint is kept.
        """
        optimizer, rate = self._optimizer()
        parts = {"twin": self.twin, "optimizer": optimizer, "rate": rate}
        checkpoint = Checkpoint(path, identity, parts)
        self.history = checkpoint.load()
        for epoch in range(len(self.history), self.recipe.epochs):
            with (
                stage(f"epoch {epoch + 1} of {self.recipe.epochs}") as progress,
                torch.random.fork_rng(devices=[]),
            ):
                torch.manual_seed(seed_of(self.recipe, epoch))
                found = self._epoch(epoch, optimizer, rate, progress)
            if self.validation is not None:
                with stage("validate"):
                    found["top1"] = self.validated()
            self.history.append(found)
            checkpoint.save(self.history)
            on_epoch(epoch + 1, found)
        return self.history

    def validated(self) -> float:
        """Return the exact twin's top-1 on the validation items, in percent."""
        assert self.validation is not None
        self.twin.mode = "exact"
        found = top1(self.twin, self.validation)
        self.twin.mode = "quantized"
        return found

    def _epoch(
        self, epoch: int, optimizer: torch.optim.Optimizer, rate: Any,
        progress: Callable[[int, int | None], None],
    ) -> dict[str, float]:  # fmt: skip
        recipe, steps = self.recipe, steps_of(self.items, self.recipe)
        self.twin.live_batch_norm = recipe.batch_norm == "live"
        total, right, start = 0.0, 0, time.perf_counter()
        for step, (inputs, labels) in enumerate(batches_of(self.items, recipe, epoch)):
            teacher = None
            if recipe.objective.distillation:
                with torch.no_grad():
                    teacher = self._logits(self.teacher(inputs))
            logits = self._logits(self.twin(inputs))
            value = loss(logits, labels, teacher, recipe.objective)
            number = float(value.detach())
            if not math.isfinite(number):
                raise TrainingError(
                    f"the loss is {number} in step {step + 1} of epoch {epoch + 1}; lower "
                    f"optimizer.lr (now {recipe.optimizer.lr:g}); the epochs before are kept"
                )
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            rate.step()
            for quantizer in self.quantizers:
                quantizer.keep_near()
            total += number
            if labels is not None:
                right += int((logits.argmax(1) == labels).sum())
            progress(step + 1, steps)
        self.twin.live_batch_norm = False
        seconds, count = time.perf_counter() - start, steps * recipe.batch_size
        return {
            "loss": total / steps,
            "top1_training": 100.0 * right / count,
            "items_per_second": count / seconds,
        }

    def _logits(self, output: Tensor) -> Tensor:
        return output.clamp_min(LEAST_SOFTMAX).log() if self.end == SOFTMAX else output

    def check(self) -> None:
        """Refuse data that do not fit the network or the recipe, before anything slow.

        Raises
        ------
        TrainingError
        """
        with torch.inference_mode():
            output = self.teacher(self.items.inputs[:1])
        check_validation(self.validation, output)
        if self.recipe.epochs == 0:
            return
        check_classifier(output)
        check_labels(self.items, output.shape[1], self.recipe.objective)
        size = self.recipe.batch_size
        if len(self.items) < size:
            raise TrainingError(f"{len(self.items)} items are no batch of {size}; lower batch_size")
        if self.recipe.batch_norm == "live":
            self.twin.live_batch_norm = True
            has_norms, self.twin.live_batch_norm = self.twin.live_batch_norm, False
            if not has_norms:
                raise TrainingError(
                    "batch_norm: live, and the model has no batch normalization (exporters fold "
                    "it); set it to folded, with a tenth of the learning rate or less"
                )
            if size == 1:
                raise TrainingError("batch_norm: live takes the statistics of more than one item")

    def _optimizer(self) -> tuple[torch.optim.Optimizer, Any]:
        how, recipe = self.recipe.optimizer, self.recipe
        steps = {id(q.scale) for q in self.quantizers}
        weights = {id(w) for w in self.twin.weights.values()}
        every = [p for p in self.twin.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in every if id(p) in weights], "weight_decay": how.weight_decay},
            {"params": [p for p in every if id(p) not in weights | steps]},
            {"params": [p for p in every if id(p) in steps], "lr": how.step_lr},
        ]
        groups = [group for group in groups if group["params"]]
        optimizer: torch.optim.Optimizer
        if how.name == "sgd":
            optimizer = torch.optim.SGD(
                groups, how.lr, how.momentum, nesterov=how.momentum > 0.0, weight_decay=0.0
            )
        else:
            optimizer = torch.optim.AdamW(groups, how.lr, weight_decay=0.0)
        length = recipe.epochs * steps_of(self.items, recipe)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(recipe, length))


def _rate(recipe: Recipe, length: int) -> Callable[[int], float]:
    """Return the share of the learning rates in a step, of so many."""
    rising = int(recipe.schedule.warmup * length)

    def share(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        done = (step - rising) / max(length - rising, 1)
        if recipe.schedule.decay == "cosine":
            return (1.0 + math.cos(math.pi * done)) / 2.0
        return 1.0 - done if recipe.schedule.decay == "linear" else 1.0

    return share
