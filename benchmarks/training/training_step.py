"""What a step of training costs, beside one of the float network in plain torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Final

import torch
from torch.nn import functional

from benchmarks.models.resnet_cifar import ResNet20
from benchmarks.rows import Row
from benchmarks.training.common import MODEL, Setting
from tvmquant.bit_choice import BitChoice
from tvmquant.layers import quantizable_layers, uniform_choices
from tvmquant.levels import canonical
from tvmquant.quantization import calibrate
from tvmquant.sensitivity.structure import ends_of
from tvmquant.training import Recipe
from tvmquant.training.items import Items
from tvmquant.training.loop import Training
from tvmquant.training.method import Batch
from tvmquant.training.optimizer import make_optimizer
from tvmquant.training.start import start_of
from tvmquant.twin import Twin

BATCH: Final = 128
STEPS: Final = 15
# What is trained with labels only, so that no teacher is computed: choice, width of residuals.
QUANTIZED: Final = (("w8a8", None), ("w4a4", None), ("w4a4", 8), ("w2a2", 8))

Step = Callable[[], None]


def rows(setting: Setting) -> list[Row]:
    """Time forward, backward and optimizer, one network after another in each round.

    Returns
    -------
    list of Row
        ``cpu_seconds`` of all threads: the median of a step; ``ratio`` to that of plain torch.
    """
    inputs, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
    twin = Twin(canonical(setting.graph, fold_batch_norm=False).module)
    twin.live_batch_norm = True
    steps = {
        "plain-float": _float_step(ResNet20().train(), inputs, labels),
        "twin-float": _float_step(twin, inputs, labels),
    }
    for choice, bits in QUANTIZED:
        name = f"twin-{choice}" + (f"-residual{bits}" if bits else "")
        steps[name] = _quantized_step(setting, choice, bits, inputs, labels)
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(-2, STEPS):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if round_ >= 0:
                taken[name].append(time.process_time() - start)
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    found = []
    for name, seconds in medians.items():
        facts = {"batch": BATCH, "steps": STEPS}
        ratio = seconds / medians["plain-float"]
        found.append(setting.make(MODEL, f"step-{name}", "cpu_seconds", seconds, "s", **facts))
        found.append(setting.make(MODEL, f"step-{name}", "ratio", ratio, "", **facts))
    return found


def _float_step(network: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> Step:
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, 0.9, nesterov=True)

    def step() -> None:
        optimizer.zero_grad()
        value = functional.cross_entropy(network(inputs), labels)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _quantized_step(
    setting: Setting, choice: str, bits: int | None, inputs: torch.Tensor, labels: torch.Tensor
) -> Step:
    graph = setting.graph
    calibration = calibrate(graph, inputs.numpy(), fold_batch_norm=False)
    objective = {"labels": 1.0, "distillation": 0.0}
    recipe = Recipe.read("lsq", {"residual_bits": bits, "objective": objective})
    choices = uniform_choices(quantizable_layers(graph), BitChoice.parse(choice))
    start = start_of(graph, calibration, choices, recipe)
    ends = ends_of(graph.module)[0]
    training = Training(
        graph, calibration, choices, Twin(start.module, mode="quantized"), Twin(graph.module),
        (ends, ends), recipe, Items(inputs, labels),
    )  # fmt: skip
    training.method.begin(recipe)
    optimizer, _ = make_optimizer(training.method, recipe, STEPS)
    training.twin.live_batch_norm = True
    batch = Batch(inputs, labels)

    def step() -> None:
        training.step(batch, optimizer)

    return step
