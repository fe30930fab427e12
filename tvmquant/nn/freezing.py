"""Replace the real numbers that few values come from by these, once training has ended."""

from __future__ import annotations

import copy

from torch import nn

from tvmquant.nn.layers import LayerOfFewValues


def freeze(network: nn.Module) -> nn.Module:
    """Return a copy of a network whose layers hold their few values as constants.

    Parameters
    ----------
    network : torch.nn.Module
        With any of this package's layers anywhere in it. Not changed.

    Returns
    -------
    torch.nn.Module
        In eval mode. It computes the same; exported, a layer is a Conv or a MatMul of a constant,
        without what makes the few values of the real numbers. It can not be trained further.

    Examples
    --------
    >>> from tvmquant.nn import BinaryLinear
    >>> freeze(BinaryLinear(64, 10, scale=False)).weight.unique().tolist()
    [-1.0, 1.0]
    """
    frozen = copy.deepcopy(network).eval()
    for module in frozen.modules():
        if isinstance(module, LayerOfFewValues):
            module.freeze()
    return frozen
