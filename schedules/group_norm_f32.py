"""Group normalization of float32 tensors, channels first: statistics and result in one kernel.

Every group of channels is normalized by its own mean and variance over its channels and positions,
then scaled and shifted per channel. One group per channel is instance normalization.

Strategy: 1. a task takes one group of one sample, which lies in one piece; 2. sums run over several
vectors, so that additions do not wait for each other, with a scalar tail; 3. the variance is summed
about the mean in a second pass, since the difference of two sums would cancel; 4. the third pass
subtracts the mean first, for the same reason. A group of a usual size stays in the cache, so
memory is read once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.s_tir import Schedule

from tvmquant.machine import Machine
from tvmquant.schedules.isa import vector_bits
from tvmquant.schedules.kernel_facts import with_facts
from tvmquant.schedules.loops import overlap_tails, overlapping_lanes, parallel_chunks, vectorize

# vectors that sums run over: the latency of an addition over its throughput
ACCUMULATORS = 4


@dataclass(frozen=True)
class GroupNormSpec:
    """Normalization of (N, C, ...); the arguments are ``(x, gamma, beta, output)``.

    Parameters
    ----------
    shape : tuple of int
        Batch, channels, and any number of further extents.
    groups : int
        A divisor of the channels.
    epsilon : float
        Added to the variance, which is not corrected.
    """

    shape: tuple[int, ...]
    groups: int
    epsilon: float

    @property
    def rows(self) -> int:
        """Groups of all samples."""
        return self.shape[0] * self.groups

    @property
    def channels(self) -> int:
        """Channels of a group."""
        return self.shape[1] // self.groups

    @property
    def positions(self) -> int:
        """Elements of a channel."""
        return math.prod(self.shape[2:])


@dataclass(frozen=True)
class Tiling:
    """How the loops are run.

    Parameters
    ----------
    sums : int
        Partial sums side by side.
    lanes : int
        Elements of a channel per vector step of the result.
    threads : int
    """

    sums: int
    lanes: int
    threads: int


def default_tiling(spec: GroupNormSpec, machine: Machine) -> Tiling:
    """Return whole registers, fewer of them for groups that would mostly be tail."""
    lanes = vector_bits(machine.target) // 32
    run = spec.channels * spec.positions
    wide = lanes * ACCUMULATORS
    return Tiling(
        wide if run >= 4 * wide else lanes,
        overlapping_lanes(spec.positions, lanes),
        machine.threads,
    )


def compute(spec: GroupNormSpec, tiling: Tiling) -> tirx.PrimFunc:
    """Return the computation of (rows, elements of a group) to (rows, channels, positions)."""
    run = spec.channels * spec.positions
    whole, rest = divmod(run, tiling.sums)
    x = te.placeholder((spec.rows, run), "float32", "x")
    gamma, beta = (te.placeholder((spec.shape[1],), "float32", n) for n in ("gamma", "beta"))

    def total(name: str, term: Any) -> te.Tensor:
        """Sum ``term(row, element)`` over a group."""
        parts = []
        if whole:
            step = te.reduce_axis((0, whole), "step")
            partial = te.compute(
                (spec.rows, tiling.sums),
                lambda r, lane: te.sum(term(r, step * tiling.sums + lane), step),
                name=f"{name}_vectors",
            )
            lane = te.reduce_axis((0, tiling.sums), "lane")
            parts.append(
                te.compute(
                    (spec.rows,), lambda r: te.sum(partial[r, lane], lane), name=f"{name}_lanes"
                )
            )
        if rest:
            element = te.reduce_axis((0, rest), "element")
            parts.append(
                te.compute(
                    (spec.rows,),
                    lambda r: te.sum(term(r, whole * tiling.sums + element), element),
                    name=f"{name}_tail",
                )
            )
        return te.compute(
            (spec.rows,), lambda r: sum((p[r] for p in parts[1:]), parts[0][r]) / run, name=name
        )

    mean = total("mean", lambda r, i: x[r, i])
    variance = total("variance", lambda r, i: (x[r, i] - mean[r]) * (x[r, i] - mean[r]))
    scale = te.compute(
        (spec.rows, spec.channels),
        lambda r, c: (
            gamma[r % spec.groups * spec.channels + c]
            / te.sqrt(variance[r] + tirx.const(spec.epsilon, "float32"))
        ),
        name="scale",
    )
    y = te.compute(
        (spec.rows, spec.channels, spec.positions),
        lambda r, c, i: (
            (x[r, c * spec.positions + i] - mean[r]) * scale[r, c]
            + beta[r % spec.groups * spec.channels + c]
        ),
        name="y",
    )
    return te.create_prim_func([x, gamma, beta, y])


def schedule(sch: Schedule, spec: GroupNormSpec, tiling: Tiling) -> None:
    """Schedule the computation; the steps are those of the module's docstring."""
    row, _channel, position = sch.get_loops(sch.get_sblock("y"))
    vectorize(sch, position, tiling.lanes)
    blocks = [
        b for b in sch.get_child_blocks(sch.get_sblock("root")) if sch.get(b).name_hint != "y"
    ]
    for block in reversed(blocks):
        sch.compute_at(block, row, preserve_unit_loops=True)
    for block in blocks:
        name = str(sch.get(block).name_hint)
        if not name.endswith(("_vectors", "_lanes", "_tail")):
            continue
        *_, last = sch.get_loops(block)
        if name.endswith("_vectors"):
            *_, lane, step = sch.get_loops(block)
            sch.reorder(step, lane)
            sch.vectorize(lane)
            *_, first = sch.get_loops(sch.decompose_reduction(block, step))
            sch.vectorize(first)
        else:
            sch.decompose_reduction(block, last)
    work = 4 * math.prod(spec.shape)
    parallel_chunks(sch, row, tiling.threads, work)


def kernel(spec: GroupNormSpec, machine: Machine) -> tirx.PrimFunc:
    """Return the scheduled kernel for a machine."""
    tiling = default_tiling(spec, machine)
    sch = Schedule(compute(spec, tiling))
    schedule(sch, spec, tiling)
    return with_facts(overlap_tails(sch.mod["main"]), "group_norm_f32", "group_norm")
