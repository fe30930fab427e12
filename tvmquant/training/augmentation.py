"""How batches of images are changed before they are used."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tvmquant.errors import TrainingError
from tvmquant.training.sections import Augmentation

# Greatest ratio of a part's sides, either way.
MOST_RATIO = 4.0 / 3.0


def augmented(images: Tensor, how: Augmentation, random: torch.Generator) -> Tensor:
    """Return images (N, C, H, W), each changed by chance; mixing is `mixed`'s.

    Raises
    ------
    TrainingError
        When items are no images, or the user's callable cannot be used.
    """
    own = user_callable(how)
    changes = [
        (_part, how.resized_crop is not None),
        (_moved, bool(how.shift or how.mirror)),
        (_coloured, bool(how.brightness or how.contrast or how.saturation)),
    ]
    if images.ndim != 4 and any(wanted for _, wanted in changes):
        raise TrainingError(
            f"augmentation: items of shape {tuple(images.shape[1:])} are no images; expected "
            "(channels, height, width)"
        )
    for change, wanted in changes:
        if wanted:
            images = change(images, how, random)
    return images if own is None else _called(own, how, images, random)


def mixed(
    images: Tensor, labels: Tensor | None, classes: int, alpha: float, random: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Return each item mixed with another of the batch, and the labels as probabilities.

    Parameters
    ----------
    images : tensor (N, ...)
    labels : int64 tensor (N,), optional
    classes : int
    alpha : float
        > 0.
    random : Generator

    Returns
    -------
    tensor (N, ...), float tensor (N, classes) where there are labels
    """
    share = float(np.random.default_rng(_drawn_seed(random)).beta(alpha, alpha))
    other = torch.randperm(len(images), generator=random)

    def mix(each: Tensor) -> Tensor:
        return share * each + (1.0 - share) * each[other]

    if labels is None:
        return mix(images), None
    return mix(images), mix(functional.one_hot(labels, classes).to(images.dtype))


def user_callable(how: Augmentation) -> Callable[[Tensor], Tensor] | None:
    """Return the callable that the augmentation names.

    Raises
    ------
    TrainingError
        When there is none of that name.
    """
    if how.call is None:
        return None
    module, _, name = how.call.partition(":")
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise TrainingError(
            f"augmentation.call {how.call!r}: {error}; expected module:function, the module's "
            "folder being in PYTHONPATH"
        ) from error
    if not callable(found):
        raise TrainingError(f"augmentation.call {how.call!r}: is not callable")
    return found


def _called(
    function: Callable[[Tensor], Tensor], how: Augmentation, images: Tensor, random: torch.Generator
) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_drawn_seed(random))
        found = function(images)
    if not isinstance(found, Tensor) or found.shape != images.shape:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise TrainingError(
            f"augmentation.call {how.call!r}: returned {shape}, expected a tensor of shape "
            f"{tuple(images.shape)}"
        )
    return found


def _drawn_seed(random: torch.Generator) -> int:
    return int(torch.randint(1 << 31, (), generator=random))


def _uniform(count: int, low: float, high: float, random: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=random)


def _part(images: Tensor, how: Augmentation, random: torch.Generator) -> Tensor:
    """Resize a part of each image to the whole, bilinear."""
    assert how.resized_crop is not None
    count = len(images)
    area = _uniform(count, *how.resized_crop, random)
    ratio = torch.exp(_uniform(count, -math.log(MOST_RATIO), math.log(MOST_RATIO), random))
    height = (area * ratio).sqrt().clamp(max=1.0)
    width = (area / ratio).sqrt().clamp(max=1.0)
    middle_row = (1.0 - height) * _uniform(count, -1.0, 1.0, random)
    middle_column = (1.0 - width) * _uniform(count, -1.0, 1.0, random)
    zero = torch.zeros(count)
    rows = [
        torch.stack([width, zero, middle_column], 1),
        torch.stack([zero, height, middle_row], 1),
    ]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(
        images, grid.to(images.dtype), padding_mode="border", align_corners=False
    )


def _moved(images: Tensor, how: Augmentation, random: torch.Generator) -> Tensor:
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


def _coloured(images: Tensor, how: Augmentation, random: torch.Generator) -> Tensor:
    def drawn(most: float) -> Tensor:
        return _uniform(len(images), -most, most, random).view(-1, 1, 1, 1)

    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (1.0 + drawn(how.saturation))
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (1.0 + drawn(how.contrast)) + drawn(how.brightness)
