"""Give the kernels that TVM's legalization made a simple parallel, vectorized schedule (L3).

Before::

    for n, c, h, w: t[n, c, h, w] = x[n, c, h, w] + 3                       # serial
    for n, c, h, w: y[n, c, h, w] = exp(t[n, c, h, w])

After::

    for task in parallel: for h, w: for lane in vectorized(8): y[...] = exp(x[...] + 3)

Touches only functions that are no kernels of ours: the few operators of the float audit, what
is left of a float build, and data movement without a kernel of its own. An elementwise step is
computed inside the one that reads it, if only that one does and for as many elements; every other
block is scheduled by itself. A reduction is vectorized over the outputs next to each other, a
product of two tensors over whole rows of the second (in attention over 196 positions 7 times as
fast as in vectors that divide them, over 197 56 times), and exponentials are computed by arithmetic
(`schedules.float_functions`).
"""

from __future__ import annotations

import math
from typing import Any

import tvm
import tvm_ffi
from tvm.s_tir import Schedule

from tvmquant.machine import Machine
from tvmquant.schedules.float_functions import expand_functions
from tvmquant.schedules.isa import vector_bits
from tvmquant.schedules.kernel_facts import is_kernel
from tvmquant.schedules.loops import (
    SPATIAL,
    lanes_for,
    overlap_tails,
    overlapping_lanes,
    vectorize,
)

# Smaller than this, waking the thread pool costs more than the loop.
PARALLEL_ELEMENTS = 8192
# Iterations of the parallel loop for every thread, so that an uneven division costs little.
TASKS_PER_THREAD = 4
REDUCTION = "2"
# The block around what TVM made of tensor expressions; a loop nest written by hand has another.
ROOT = "root"
# What TVM marks a loop nest by that it wrote by hand; LLVM warns that it does not know it.
PRAGMA = "pragma_scope"


def _schedule(function: tvm.tirx.PrimFunc, machine: Machine) -> tvm.tirx.PrimFunc:
    function = _serial(function)
    if function.body.block.name_hint != ROOT:
        return function
    sch = Schedule(expand_functions(function))
    for block in sch.get_child_blocks(sch.get_sblock(ROOT)):
        if _belongs_to_its_reader(sch, block):
            sch.compute_inline(block)
    for block in sch.get_child_blocks(sch.get_sblock(ROOT)):
        _schedule_block(sch, block, vector_bits(machine.target) // 32, machine.threads)
    return overlap_tails(sch.mod["main"])


def _serial(function: tvm.tirx.PrimFunc) -> tvm.tirx.PrimFunc:
    """Make the loops serial that TVM wrote by hand, of scatters and scans.

    It makes some of them parallel, however short they are and inside of which others.
    """

    def serial(loop: Any) -> Any:
        if loop.kind != tvm.tirx.ForKind.PARALLEL:
            return loop
        kind = tvm.tirx.ForKind.SERIAL
        return tvm.tirx.For(loop.loop_var, loop.min, loop.extent, kind, loop.body)

    def unmarked(mark: Any) -> Any:
        return mark.body if mark.attr_key == PRAGMA else mark

    rewrites = [(tvm.tirx.For, serial), (tvm.tirx.AttrStmt, unmarked)]
    return function.with_body(tvm_ffi.structural_map(function.body, rewrites, order="post"))


def _belongs_to_its_reader(sch: Schedule, block: Any) -> bool:
    """Whether a block is elementwise and one elementwise block reads it, as often as it is long."""
    readers = sch.get_consumers(block)
    if len(readers) != 1:
        return False
    extents = [_spatial_extents(sch, b) for b in (block, readers[0])]
    return None not in extents and math.prod(extents[0] or []) == math.prod(extents[1] or [])


def _spatial_extents(sch: Schedule, block: Any) -> list[int] | None:
    """Return the extents of a block whose loops are all spatial and constant, else None."""
    kinds = _kinds(sch, block)
    extents = [sch.get(loop).extent for loop in sch.get_loops(block)]
    constant = all(isinstance(extent, tvm.tirx.IntImm) for extent in extents)
    if not constant or kinds != [SPATIAL] * len(extents):
        return None
    return [int(extent) for extent in extents]


def _kinds(sch: Schedule, block: Any) -> list[str]:
    return [str(variable.iter_type) for variable in sch.get(block).iter_vars]


def _schedule_block(sch: Schedule, block: Any, lanes: int, threads: int) -> None:
    loops, kinds = sch.get_loops(block), _kinds(sch, block)
    count = kinds.count(SPATIAL)
    if kinds != [SPATIAL] * count + [REDUCTION] * (len(loops) - count) or not count:
        return
    if len(loops) != len(kinds):
        return  # a single element, which no loop runs over
    if not all(isinstance(sch.get(loop).extent, tvm.tirx.IntImm) for loop in loops):
        return
    extents = [int(sch.get(loop).extent) for loop in loops]
    spatial, reductions = loops[:count], loops[count:]
    width = lanes_for(extents[count - 1], lanes)
    if not reductions and _reads_parameters(sch, block):
        spatial[-1] = vectorize(sch, spatial[-1], overlapping_lanes(extents[count - 1], lanes))
    elif not reductions:
        # the result may come to lie where the operand did: no element may be computed twice
        last = extents[count - 1]
        spatial[-1] = vectorize(sch, spatial[-1], min(last & -last, lanes))
    elif count > 1 and extents[count - 1] >= lanes and _is_product(sch, block):
        # LLVM makes vectors of a row, whatever its length, and a rest
        *spatial, row = spatial
        sch.reorder(*reductions, row)
    elif width > 1 and extents[count - 1] % width == 0 and _stores_once(sch, block):
        spatial[-1], lane = sch.split(spatial[-1], [None, width])
        sch.reorder(*reductions, lane)
        sch.vectorize(lane)
    if threads > 1 and math.prod(extents[:count]) >= PARALLEL_ELEMENTS:
        sch.parallel(_outer_loop(sch, spatial, TASKS_PER_THREAD * threads))
    if reductions and _stores_once(sch, block):
        *_, last = sch.get_loops(sch.decompose_reduction(block, reductions[0]))
        if int(sch.get(last).extent) == width > 1:
            sch.vectorize(last)


def _reads_parameters(sch: Schedule, block: Any) -> bool:
    """Whether a block reads parameters of its function only, nothing that other blocks make."""
    return not sch.get_producers(block)


def _is_product(sch: Schedule, block: Any) -> bool:
    """Whether a block reduces two tensors to one: a matrix product."""
    return _stores_once(sch, block) and len(sch.get(block).reads) == 2


def _stores_once(sch: Schedule, block: Any) -> bool:
    """Whether a block writes one tensor (an argmax writes two)."""
    return len(sch.get(block).writes) == 1


def _outer_loop(sch: Schedule, loops: list[Any], tasks: int) -> Any:
    """Fuse as many outer loops as make ``tasks`` iterations; the others stay cheap to index."""
    taken, iterations = 0, 1
    while taken < len(loops) and iterations < tasks:
        iterations *= int(sch.get(loops[taken]).extent)
        taken += 1
    return sch.fuse(*loops[:taken]) if taken > 1 else loops[0]


@tvm.ir.transform.module_pass(opt_level=0, name="ScheduleFloatOps")
class ScheduleFloatOps:
    """Schedule what has no kernel of ours (see the module's description).

    Parameters
    ----------
    machine : Machine
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with every kernel scheduled."""
        module = tvm.IRModule(module.functions, attrs=module.attrs)
        for variable, function in list(module.functions.items()):
            if not isinstance(function, tvm.tirx.PrimFunc):
                continue
            if is_kernel(function):
                continue
            symbol = str(variable.name_hint)
            named = function.with_attr("global_symbol", symbol)
            module[variable] = _schedule(named, self.machine).without_attr("global_symbol")
        return module
