"""Preprocessed items, in an order and with changes that only the seed and the step decide."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import Tensor

from tvmquant.data import Dataset
from tvmquant.errors import TrainingError
from tvmquant.progress import Progress
from tvmquant.training.augmentation import augmented, mixed
from tvmquant.training.distributed import rank, size
from tvmquant.training.recipe import Recipe

# Of the memory, or the disk, that is free, what items may take.
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
        found = hashlib.sha256()
        for inputs in self.batches(256):
            found.update(inputs.numpy().tobytes())
        if self.labels is not None:
            found.update(self.labels.numpy().tobytes())
        return found.hexdigest()

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield all inputs in order."""
        for start in range(0, len(self), size):
            yield self.inputs[start : start + size]


def read(data: Dataset, progress: Progress | None = None, folder: Path | None = None) -> Items:
    """Read and preprocess all items of a data set.

    Parameters
    ----------
    data : Dataset
    progress : callable, optional
    folder : Path, optional
        Where a file without a name, gone when the process ends, holds what is too much for memory.

    Raises
    ------
    TrainingError
        When a network has several inputs, or memory and disk are too small.
    """
    inputs: list[npt.NDArray[Any]] = []
    labels: list[Tensor] = []
    taken, total = 0, len(data) if data.has_length else None
    for batch, found in data:
        if isinstance(batch, tuple):
            raise TrainingError(
                f"{data.name}: networks of several inputs are neither trained nor reconstructed yet"
            )
        if total is None:
            _check_room(data.name, taken, sum(x.nbytes for x in inputs), 0, None)
            inputs.append(batch)
        else:
            if not inputs:
                inputs = [room(data.name, total, batch, folder)]
            inputs[0][taken : taken + len(batch)] = batch
        if found is not None:
            labels.append(torch.from_numpy(found))
        taken += len(batch)
        if progress is not None:
            progress(taken, total)
    whole = inputs[0][:taken] if len(inputs) == 1 else np.concatenate(inputs)
    return Items(torch.from_numpy(whole), torch.cat(labels) if labels else None)


def room(name: str, count: int, like: npt.NDArray[Any], folder: Path | None) -> npt.NDArray[Any]:
    """Return an array for so many items, in memory or, if they are too many, in a file."""
    shape = (count, *like.shape[1:])
    size = like.nbytes // len(like) * count
    if size <= SHARE * psutil.virtual_memory().available:
        return np.empty(shape, like.dtype)
    _check_room(name, count, 0, size, folder)
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, like.dtype, "w+", shape=shape)


def _check_room(name: str, count: int, held: int, more: int, folder: Path | None) -> None:
    """Refuse what neither memory nor disk has room for: bytes that are held, and more."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        if more <= SHARE * psutil.disk_usage(str(folder)).free:
            return
    elif held + more <= SHARE * (psutil.virtual_memory().available + held):
        return
    places = "memory" if folder is None else f"memory, and than half of what is free in {folder}"
    raise TrainingError(
        f"{name}: {count} items take {(held + more) / 1e9:.1f} GB, more than half of the free "
        f"{places}; select fewer (--select step=2)"
    )


def batches_of(
    items: Items, recipe: Recipe, epoch: int, *, first: int = 0, classes: int | None = None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield the full batches of an epoch; the rest of the items is left out of it.

    Of several processes each gets its part of every batch.

    Parameters
    ----------
    items : Items
    recipe : Recipe
    epoch : int
        From 0; other epochs have another order.
    first : int
        Batches before are passed over.
    classes : int, optional
        Of the network; where there are none, items are not mixed.

    Yields
    ------
    tensor (N, ...), and its int64 labels (N,), or their probabilities (N, classes) if mixed
    """
    order = torch.randperm(len(items), generator=_generator(recipe, epoch))
    own = slice(rank() * recipe.batch_size // size(), (rank() + 1) * recipe.batch_size // size())
    how = recipe.augmentation
    for step in range(first, steps_of(items, recipe)):
        chosen = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        random = _generator(recipe, epoch, step)
        inputs = augmented(items.inputs[chosen], how, random)
        labels = None if items.labels is None else items.labels[chosen]
        if how.mixup and classes is not None:
            inputs, labels = mixed(inputs, labels, classes, how.mixup, random)
        yield inputs[own], None if labels is None else labels[own]


def _generator(recipe: Recipe, *numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(recipe, *numbers))


def seed_of(recipe: Recipe, *numbers: int) -> int:
    """Return the seed of an epoch, or of a step of one: torch takes 32 bits of one."""
    return int(np.random.SeedSequence([recipe.seed, *numbers]).generate_state(1)[0])


def steps_of(items: Items, recipe: Recipe) -> int:
    """Return the number of batches in an epoch."""
    return len(items) // recipe.batch_size
