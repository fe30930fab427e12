"""The loss whose growth is the cost of quantization."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  torch's own name for it
from torch import Tensor

from tvmquant.errors import DataError


def first_output(result: Any) -> Tensor:
    """Return the first output as (N, C, ...), without trailing extents of 1."""
    output: Tensor = result[0] if isinstance(result, tuple) else result
    while output.ndim > 2 and output.shape[-1] == 1:
        output = output.squeeze(-1)
    if output.ndim < 2:
        raise DataError(
            f"the model's first output has shape {tuple(output.shape)}; sensitivity needs one row "
            "of values for each item"
        )
    return output


def targets_of(output: Tensor, labels: Tensor | None) -> Tensor:
    """Return what the loss compares with: labels (N,), or the float network's own results.

    Raises
    ------
    DataError
        When a label is no class of the model.
    """
    if labels is None or output.ndim != 2:
        return output.detach() if output.shape[1] == 1 else output.detach().softmax(1)
    if int(labels.min()) < 0 or int(labels.max()) >= output.shape[1]:
        raise DataError(
            f"labels {int(labels.min())}..{int(labels.max())} do not fit a model of "
            f"{output.shape[1]} classes; pass data without labels, or labels of this model"
        )
    return labels


def loss_of(output: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss of a batch.

    Parameters
    ----------
    output : tensor (N, C, ...)
        Logits along axis 1; with C = 1 no classes but values.
    targets : tensor
        Of `targets_of`.

    Returns
    -------
    scalar tensor
        Cross-entropy in nats, averaged over items and positions; half the squared error of values.
    """
    if output.shape[1] == 1:
        return 0.5 * F.mse_loss(output, targets)
    return F.cross_entropy(output, targets)


def divergence(output: Tensor, targets: Tensor, reference: Tensor) -> Tensor:
    """Return how much worse an output is than the float network's ``reference``, per `loss_of`.

    With soft targets this is the Kullback-Leibler divergence of the output from the reference.
    """
    return loss_of(output, targets) - loss_of(reference, targets)


def sampled_targets(output: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
    """Draw labels from soft targets, as the Fisher information asks; labels stay as they are."""
    if output.shape[1] == 1:
        noise = torch.randn(output.shape, generator=generator)
        return output.detach() + noise  # a normal model of unit variance around its value
    if not targets.is_floating_point():
        return targets
    rows = targets.movedim(1, -1).reshape(-1, targets.shape[1])
    drawn = torch.multinomial(rows, 1, generator=generator)
    return drawn.reshape(targets.movedim(1, -1).shape[:-1])
