"""Give the kernels that TVM's legalization made a simple parallel, vectorized schedule (L3).

Before::

    for n, c, h, w: y[n, c, h, w] = exp(x[n, c, h, w])                      # serial

After::

    for task in parallel: for lane in vectorized(16): y[...] = exp(x[...])

Touches only functions that carry no ``tvmquant.kernel``: the few operators of the float audit and
data movement without a kernel of its own. Every block is scheduled by itself; a reduction keeps
its reduction loops serial.
"""

from __future__ import annotations

import tvm
from tvm.s_tir import Schedule

from tvmquant.schedules.isa import vector_bits

# Smaller than this, waking the thread pool costs more than the loop.
PARALLEL_ELEMENTS = 8192


def _schedule(
    function: tvm.tirx.PrimFunc, target: tvm.target.Target, threads: int
) -> tvm.tirx.PrimFunc:
    sch = Schedule(function)
    lanes = vector_bits(target) // 32
    for block in sch.get_child_blocks(sch.get_sblock("root")):
        loops = sch.get_loops(block)
        kinds = [str(v.iter_type) for v in sch.get(block).iter_vars]
        spatial = [loop for loop, kind in zip(loops, kinds, strict=False) if kind == "0"]
        extents = [sch.get(loop).extent for loop in spatial]
        if len(loops) != len(kinds) or not spatial:
            continue
        if not all(isinstance(e, tvm.tirx.IntImm) for e in extents):
            continue
        elements = 1
        for extent in extents:
            elements *= int(extent)
        if len(spatial) == len(loops) and int(extents[-1]) % lanes == 0:
            *spatial, inner = spatial
            outer, vector = sch.split(inner, [None, lanes])
            sch.vectorize(vector)
            spatial.append(outer)
        if elements >= PARALLEL_ELEMENTS and threads > 1:
            sch.parallel(sch.fuse(*spatial) if len(spatial) > 1 else spatial[0])
    return sch.mod["main"]


@tvm.ir.transform.module_pass(opt_level=0, name="ScheduleFloatOps")
class ScheduleFloatOps:
    """Schedule what has no kernel of ours (see the module's description).

    Parameters
    ----------
    target : Target
    threads : int
    """

    def __init__(self, target: tvm.target.Target, threads: int) -> None:
        self.target = target
        self.threads = threads

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with every kernel scheduled."""
        module = tvm.IRModule(module.functions, attrs=module.attrs)
        for variable, function in list(module.functions.items()):
            if not isinstance(function, tvm.tirx.PrimFunc):
                continue
            if function.attrs and "tvmquant.kernel" in function.attrs:
                continue
            symbol = str(variable.name_hint)
            named = function.with_attr("global_symbol", symbol)
            module[variable] = _schedule(named, self.target, self.threads).without_attr(
                "global_symbol"
            )
        return module
