"""The optimizer of a phase, and how its learning rates change."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from tvmquant.training.method import Method
from tvmquant.training.recipe import Recipe
from tvmquant.training.sections import Schedule


def make_optimizer(
    method: Method, recipe: Recipe, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return the optimizer and the scheduler of a phase of so many steps.

    Weights decay; biases, normalizations and steps of quantizers do not.
    """
    how, twin = recipe.optimizer, method.training.twin
    learned = {id(p) for q in method.quantizers for p in q.parameters()}
    weights = {id(w) for w in twin.weights.values()}
    every = [p for p in twin.parameters() if p.requires_grad]
    others = method.groups()
    apart = {id(p) for group in others for p in group["params"]}
    every = [p for p in every if id(p) not in apart]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in every if id(p) in weights], "weight_decay": how.weight_decay},
        {"params": [p for p in every if id(p) not in weights | learned]},
        {"params": [p for p in every if id(p) in learned], "lr": how.step_lr},
        *others,
    ]
    groups = [group for group in groups if group["params"]]
    optimizer: torch.optim.Optimizer
    if how.name == "sgd":
        optimizer = torch.optim.SGD(
            groups, how.lr, how.momentum, nesterov=how.momentum > 0.0, weight_decay=0.0
        )
    elif how.name == "rmsprop":
        optimizer = torch.optim.RMSprop(
            groups, how.lr, alpha=0.9, eps=1e-3, momentum=how.momentum, weight_decay=0.0
        )
    else:
        optimizer = torch.optim.AdamW(groups, how.lr, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_rate(recipe.schedule, steps))
    return optimizer, rate


def share_of_rate(schedule: Schedule, steps: int) -> Callable[[int], float]:
    """Return the function from a step to the share of the learning rates in it."""
    rising = int(schedule.warmup * steps)

    def share(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        done = (step - rising) / max(steps - rising, 1)
        if schedule.decay == "cosine":
            return (1.0 + math.cos(math.pi * done)) / 2.0
        if schedule.decay == "steps":
            return float(schedule.factor ** sum(done >= at for at in schedule.at))
        return 1.0 - done if schedule.decay == "linear" else 1.0

    return share
