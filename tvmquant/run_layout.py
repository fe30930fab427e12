"""The order and the runs in which the weights of an output channel follow each other.

Which weights are neighbours decides integers: neighbours in pairs are bounded
(`tvmquant.weight_pairs`), neighbours in groups share a multiplier (`tvmquant.quantizer`). The order
is therefore part of what a model is, the same on every processor, and is declared here, not by a
kernel:

* A row of the window is a run of ``kw * I`` weights: its columns one after the other, of each the
  input channels.
* Where rows are short, all of them are one run of ``kh * kw * I`` (`RunLayout.joined`): each would
  be filled up with zeros to words of `WORD` weights, which adds up where channels are few. The
  three rows of a 3x3x3 window take 36 weights, joined they take 28.
* A dense layer's weights are one run.

A kernel that reads these runs gets bounded pairs and can scale groups. It may read others and stays
exact: `schedules.conv2d_packing.provable_chain` proves what fits of the runs that a kernel reads,
and groups that it cannot follow reach it multiplied out (`groups_follow_runs`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tvmquant.arithmetic import Array

# Weights that instructions multiply together.
WORD = 4
# Rows are joined up to this many weights each, and where joining them saves every row at least so
# many words, of all output channels together.
LONGEST_JOINED = 32
LEAST_SAVED = 16


@dataclass(frozen=True)
class RunLayout:
    """The runs of each output channel of a weight.

    Parameters
    ----------
    rows : int
        Runs.
    length : int
        Weights of a run.
    joined : bool
        Whether several rows of the window are one run.
    """

    rows: int
    length: int
    joined: bool

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> RunLayout:
        """Return the layout of a weight (O, I, kh, kw) or (O, I)."""
        if len(shape) == 2:
            return cls(1, shape[1], joined=False)
        outputs, inputs, height, width = shape
        row = width * inputs
        saved = height * -(-row // WORD) - -(-height * row // WORD)
        joined = height > 1 and row <= LONGEST_JOINED and saved * outputs >= LEAST_SAVED * height
        return cls(1, height * row, joined) if joined else cls(height, row, joined)


def groups_follow_runs(
    shape: tuple[int, ...], dilation: tuple[int, ...], channel_groups: int
) -> bool:
    """Return whether a convolution multiplies whole runs with neighbours of its input.

    Dilation and grouped channels cut them up: columns always, rows where they are joined.

    Parameters
    ----------
    shape : (O, I, kh, kw)
    dilation : (int, int)
    channel_groups : int
    """
    if channel_groups > 1 or dilation[1] > 1:
        return False
    return dilation[0] == 1 or not RunLayout.of(shape).joined


def runs_of(weight: Array) -> Array:
    """Return a weight with its reduced axes in runs.

    Parameters
    ----------
    weight : array (O, I, kh, kw) or (O, I)

    Returns
    -------
    array of shape (O, rows, length)
        Of its `RunLayout`; a view or a copy.
    """
    if weight.ndim == 2:
        return weight[:, None, :]
    rows = RunLayout.of(weight.shape).rows
    return weight.transpose(0, 2, 3, 1).reshape(len(weight), rows, -1)


def weight_of(runs: Array, shape: tuple[int, ...]) -> Array:
    """Return the weight of a shape (O, I, kh, kw) or (O, I) whose `runs_of` these are."""
    if len(shape) == 2:
        return runs[:, 0]
    outputs, inputs, height, width = shape
    blocks = runs.reshape(outputs, height, width, inputs)
    return np.ascontiguousarray(blocks.transpose(0, 3, 1, 2))
