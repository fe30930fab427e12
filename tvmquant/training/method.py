"""What a training does in every step; recipes choose others than the plain one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tvmquant.training.objective import feature_loss, loss
from tvmquant.training.quantizers import TrainedQuantizer, put_in
from tvmquant.training.recipe import Recipe

if TYPE_CHECKING:
    from tvmquant.graph import Graph
    from tvmquant.sensitivity import Sensitivity
    from tvmquant.training.loop import Training


@dataclass(frozen=True)
class Batch:
    """What a step is given.

    Attributes
    ----------
    inputs : float tensor (N, ...)
    labels : int64 tensor (N,), or float tensor (N, classes) of mixed items, optional
    teacher : float tensor (N, classes), optional
        Logits of the teacher, where the objective has distillation.
    features : dict of str to tensor
        The teacher's inputs of layers, where the objective has features.
    done : float
        Share of the steps of this phase that are done, from 0 to below 1.
    epoch, step : int
        From 0; the step is that of the epoch.
    """

    inputs: Tensor
    labels: Tensor | None
    teacher: Tensor | None = None
    features: dict[str, Tensor] = field(default_factory=dict)
    done: float = 0.0
    epoch: int = 0
    step: int = 0


class Method:
    """One pass of the network a step, its quantizers as the recipe has them.

    Parameters
    ----------
    training : Training
        Its twin gets the quantizers.

    Attributes
    ----------
    recipe : Recipe
        Of the present phase.
    quantizers : list of TrainedQuantizer
        Those of the twin that are trained.
    state : Module
        What a checkpoint keeps beside the twin.
    """

    def __init__(self, training: Training) -> None:
        self.training, self.recipe = training, training.recipe
        self.quantizers = self.put_in()
        self.state = nn.Module()

    def put_in(self) -> list[TrainedQuantizer]:
        """Let quantizers that are trained take the place of the twin's."""
        return put_in(self.training.twin, self.recipe)

    def check(self) -> None:
        """Refuse what does not fit the network, before anything slow.

        Raises
        ------
        TrainingError
        """

    def begin(self, recipe: Recipe) -> None:
        """Begin a phase, whose recipe may differ; also when a training goes on within it."""
        self.recipe = recipe
        for quantizer in self.quantizers:
            quantizer.follow(recipe.activations if quantizer.per_item else recipe.weights)

    def groups(self) -> list[dict[str, Any]]:
        """Return groups of parameters of its own, each with its learning rate (``lr``)."""
        return []

    def losses(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the loss and the logits (N, classes) of every pass.

        Each loss is differentiated before the next is asked for; gradients add up.
        """
        yield self.one_pass(batch)

    def one_pass(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the objective, and the logits, of the twin as it is."""
        logits, features = self.training.outputs(batch.inputs)
        value = loss(logits, batch.labels, batch.teacher, self.recipe.objective)
        if batch.features:
            value = value + self.recipe.objective.features * feature_loss(features, batch.features)
        return value, logits

    def before_step(self, batch: Batch) -> None:
        """Change gradients, which are complete."""

    def after_step(self, batch: Batch) -> None:
        """Change parameters, which have moved."""
        for quantizer in self.quantizers:
            quantizer.keep_near()

    def validated(self) -> dict[str, float]:
        """Return ``top1`` of the exact twin on the validation items, in percent."""
        return {"top1": self.training.top1_of_integers()}

    def written(self) -> Graph:
        """Return the network (L1) as it is trained."""
        return self.training.graph.with_module(self.training.twin.write_back(), "L1")

    def written_widths(self) -> dict[int, Graph]:
        """Return the network at every bit width, the widest first, of one that has several."""
        return {}

    def learned(self) -> dict[str, float]:
        """Return what else is to be known of an epoch."""
        return {}

    def sensitivity(self) -> Sensitivity | None:
        """Return what choices of layers cost, where that is what was learned."""
        return None

    def finish(self) -> None:
        """Bring the twin into the form that is written back, after the last step."""
