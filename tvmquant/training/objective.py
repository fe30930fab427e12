"""What a training minimises, and what it is measured by."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tvmquant.training.items import Items
from tvmquant.training.sections import Objective

# Of a batch that is validated, most items and most bytes: the system clears the pages of larger
# tensors anew each time, which takes longer than computing them.
VALIDATED = 100
VALIDATED_BYTES = 4 << 20


def loss(logits: Tensor, labels: Tensor | None, teacher: Tensor | None, what: Objective) -> Tensor:
    """Return the weighted sum of the losses.

    Parameters
    ----------
    logits : float tensor (N, classes)
    labels : int64 tensor (N,), or float (N, classes) if mixed, where `what` has labels
    teacher : float tensor (N, classes), where `what` has distillation
        Its logits.
    what : Objective
    """
    total = logits.new_zeros(())
    if what.labels:
        assert labels is not None
        total = total + what.labels * functional.cross_entropy(
            logits, labels, label_smoothing=what.smoothing
        )
    if what.distillation:
        assert teacher is not None
        student, target = (
            functional.log_softmax(x / what.temperature, 1) for x in (logits, teacher)
        )
        divergence = functional.kl_div(student, target, reduction="batchmean", log_target=True)
        total = total + what.distillation * what.temperature**2 * divergence
    return total


def feature_loss(features: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
    """Return how far the inputs of layers are from the teacher's.

    The mean over layers of the squared distance, as a share of the teacher's square.

    Parameters
    ----------
    features, teacher : dict of str to float tensor
        By the names of layers; those of both count.
    """
    found = [
        functional.mse_loss(features[name].float(), x) / x.pow(2).mean().clamp_min(1e-12)
        for name, x in ((name, wanted.float()) for name, wanted in teacher.items())
        if name in features
    ]
    return torch.stack(found).mean()


def top1(network: nn.Module, items: Items) -> float:
    """Return the share of items, in percent, whose label has the greatest output."""
    assert items.labels is not None
    size = max(1, min(VALIDATED, VALIDATED_BYTES // items.inputs[0].nbytes))
    with torch.inference_mode():
        found = [network(inputs).argmax(1) for inputs in items.batches(size)]
    return 100.0 * float((torch.cat(found) == items.labels).double().mean())
