"""Items in memory, in an order and with changes that only the seed and the epoch decide."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.nn import functional

from tvmquant.data import Dataset
from tvmquant.errors import TrainingError
from tvmquant.progress import Progress
from tvmquant.training.recipe import Augmentation, Recipe

# Of the memory that is free, what items may take.
SHARE = 0.5


@dataclass(frozen=True)
class Items:
    """Preprocessed inputs and labels.

    Parameters
    ----------
    inputs : tensor (N, ...)
    labels : int64 tensor (N,), optional
    """

    inputs: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.inputs)

    def digest(self) -> str:
        """Return what tells these items from others."""
        found = hashlib.sha256(self.inputs.numpy().tobytes())
        if self.labels is not None:
            found.update(self.labels.numpy().tobytes())
        return found.hexdigest()

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield all inputs in order."""
        for start in range(0, len(self), size):
            yield self.inputs[start : start + size]


def read(data: Dataset, progress: Progress | None = None) -> Items:
    """Read and preprocess all items of a data set.

    Raises
    ------
    TrainingError
        When a network has several inputs, or memory is too small.
    """
    inputs: list[Tensor] = []
    labels: list[Tensor] = []
    taken, total = 0, len(data) if data.has_length else None
    for batch, found in data:
        if isinstance(batch, tuple):
            raise TrainingError(f"{data.name}: networks of several inputs cannot be trained yet")
        inputs.append(torch.from_numpy(batch))
        if found is not None:
            labels.append(torch.from_numpy(found))
        taken += len(batch)
        whole = batch.nbytes / len(batch) * (total or taken)
        if whole > SHARE * psutil.virtual_memory().available + sum(x.nbytes for x in inputs):
            raise TrainingError(
                f"{data.name}: {total or taken} items take {whole / 1e9:.1f} GB, more than half of "
                "the memory that is free; select fewer (--select step=2)"
            )
        if progress is not None:
            progress(taken, total)
    return Items(torch.cat(inputs), torch.cat(labels) if labels else None)


def batches_of(items: Items, recipe: Recipe, epoch: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield the full batches of an epoch; the rest of the items is left out of it.

    Parameters
    ----------
    items : Items
    recipe : Recipe
    epoch : int
        From 0; other epochs have another order.
    """
    random = torch.Generator().manual_seed(seed_of(recipe, epoch))
    order = torch.randperm(len(items), generator=random)
    for start in range(steps_of(items, recipe)):
        chosen = order[start * recipe.batch_size : (start + 1) * recipe.batch_size]
        inputs = augmented(items.inputs[chosen], recipe.augmentation, random)
        yield inputs, None if items.labels is None else items.labels[chosen]


def seed_of(recipe: Recipe, epoch: int) -> int:
    """Return the seed of an epoch: torch takes 32 bits of one."""
    return int(np.random.SeedSequence([recipe.seed, epoch]).generate_state(1)[0])


def steps_of(items: Items, recipe: Recipe) -> int:
    """Return the number of batches in an epoch."""
    return len(items) // recipe.batch_size


def augmented(images: Tensor, how: Augmentation, random: torch.Generator) -> Tensor:
    """Return images (N, C, H, W), each moved and perhaps mirrored by chance."""
    if not how.shift and not how.mirror:
        return images
    count, _, height, width = images.shape
    reach = 2 * how.shift + 1
    padded = functional.pad(images, (how.shift,) * 4).permute(0, 2, 3, 1)
    rows = torch.randint(reach, (count, 1), generator=random) + torch.arange(height)
    columns = torch.randint(reach, (count, 1), generator=random) + torch.arange(width)
    if how.mirror:
        mirrored = torch.rand(count, 1, generator=random) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    item = torch.arange(count)[:, None, None]
    return padded[item, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
