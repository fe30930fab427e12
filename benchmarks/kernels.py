"""GMAC/s of every ResNet-50 layer, against what the multipliers of the machine can do.

The peak is measured, in the same run and by turns with each layer: every thread repeats the dot
product that the layers use on accumulators that never leave their registers.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.script import tirx as T  # noqa: N812  (TVMScript's customary name)

from benchmarks.rows import Row, RowMaker, machine_facts
from tvmquant.benchmark import measure_interleaved
from tvmquant.errors import TargetError
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of
from tvmquant.machine import Machine
from tvmquant.progress import Progress
from tvmquant.schedules import conv2d, isa
from tvmquant.schedules.epilogue import Epilogue
from tvmquant.schedules.isa import DotProduct

Runner = Callable[[], object]

# every dot product that the peak takes feeds the next one of the same register; this many
# independent ones hide its latency (4 to 5 cycles, at 2 a cycle) and leave registers for operands
ACCUMULATORS = {16: 12, 32: 24}
# about as long as a layer: 0.1 to 1 ms
PEAK_STEPS = 40_000


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer of ResNet-50 and how often it occurs.

    Attributes
    ----------
    name : str
        Input height, channels -> outputs, kernel, stride; ``+`` where a residual is added. Or
        ``dense`` and the same channels.
    spec : Conv2DSpec
        With the epilogue that the compiler gives it.
    count : int
    """

    name: str
    spec: conv2d.Conv2DSpec
    count: int


def resnet50_layers(batch: int = 1) -> list[Layer]:
    """Return the distinct layers of ResNet-50, in the order of their first use.

    Stride 2 is in the 3x3 convolutions. The branch that is computed last adds the other one: the
    shortcut's convolution where there is one, else the branch's third. The dense layer at the end
    is a convolution of one pixel.
    """
    layers: list[Layer] = []

    def add(size: int, inputs: int, outputs: int, window: int, stride: int, **more: Any) -> None:
        layers.append(layer_of(batch, size, inputs, outputs, window, stride, **more))

    add(224, 3, 64, 7, 2)
    inputs, size = 64, 56
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        outputs, small = 4 * width, size // stride
        add(size, inputs, width, 1, 1)
        if stride > 1:
            add(size, width, width, 3, stride)
        add(small, width, width, 3, 1, count=blocks - (stride > 1))
        add(small, width, outputs, 1, 1)
        add(size, inputs, outputs, 1, stride, residual=True)
        add(small, outputs, width, 1, 1, count=blocks - 1)
        add(small, width, outputs, 1, 1, count=blocks - 1, residual=True)
        inputs, size = outputs, small
    dense = layer_of(batch, 1, inputs, 1000, 1, 1)
    return [*_merged(layers), dataclasses.replace(dense, name=f"dense {inputs}->1000")]


def _merged(layers: list[Layer]) -> list[Layer]:
    """Add up the counts of equal layers."""
    counts: dict[tuple[str, conv2d.Conv2DSpec], int] = {}
    for layer in layers:
        key = layer.name, layer.spec
        counts[key] = counts.get(key, 0) + layer.count
    return [Layer(name, spec, count) for (name, spec), count in counts.items()]


def layer_of(
    batch: int,
    size: int,
    inputs: int,
    outputs: int,
    window: int,
    stride: int,
    *,
    count: int = 1,
    residual: bool = False,
) -> Layer:
    name = f"{size} {inputs}->{outputs} {window}x{window}/{stride}{'+' if residual else ''}"
    border = window // 2
    spec = conv2d.Conv2DSpec(
        batch=batch,
        height=size,
        width=size,
        channels=inputs,
        outputs=outputs,
        kernel=(window, window),
        strides=(stride, stride),
        padding=(border, border, border, border),
        epilogue=Epilogue("int32", "uint8", 0, 255, residual=residual),
    )
    return Layer(name, spec, count)


def run(
    *,
    threads: int,
    target: str = "native",
    batch: int = 1,
    repeats: int = 100,
    layers: list[Layer] | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Measure layers, each by turns with the peak.

    Parameters
    ----------
    threads : int
    target : str
        As of `tvmquant.build`; must run on this machine.
    batch : int
        Images.
    repeats : int
        Timed runs of each layer and of the peak beside it; their medians count.
    layers : list of Layer, optional
        Default: those of ResNet-50.
    progress : callable (done, total), optional
        Called with the number of layers.

    Returns
    -------
    list of Row
        For each layer ``gmacs_per_s`` (products with padding do not count) and
        ``fraction_of_peak``; the same for all ``total`` (each
        layer as often as it occurs) and the machine's ``peak``; ``geomean`` of the distinct
        convolutions' fractions (a dense layer uses each weight once per image: reading them bounds
        it, not multiplying).

    Raises
    ------
    TargetError
        When the target has no dot-product instruction.
    """
    facts = machine_facts(target)
    machine = Machine.of(target, threads)
    dot = isa.dot_products(machine.target)[0]
    peak, peak_macs = _peak_runner(dot, machine)
    chosen = resnet50_layers(batch) if layers is None else layers
    make = RowMaker("kernels", threads, facts)
    measured = []
    for index, layer in enumerate(chosen):
        runner, name = layer_runner(layer.spec, machine)
        times = measure_interleaved({"peak": peak, "layer": runner}, repeats=repeats, warmup=5)
        medians = {key: float(np.median(seconds)) for key, seconds in times.items()}
        measured.append((layer, name, medians["layer"], peak_macs / medians["peak"]))
        if progress is not None:
            progress(index + 1, len(chosen))
    return list(_rows(make, measured))


def _rows(make: RowMaker, measured: list[tuple[Layer, str, float, float]]) -> Iterator[Row]:
    def rows(layer: str, rate: float, fraction: float, **extra: Any) -> Iterator[Row]:
        more = {"layer": layer, **extra}
        yield make("resnet50", "tvmquant-int8", "gmacs_per_s", rate / 1e9, "GMAC/s", **more)
        yield make("resnet50", "tvmquant-int8", "fraction_of_peak", fraction, "", **more)

    fractions = []
    macs = seconds = least = 0.0
    for layer, kernel, time, peak in measured:
        rate = layer.spec.useful_macs / time
        if layer.spec.pixels > 1:
            fractions.append(rate / peak)
        macs += layer.count * layer.spec.useful_macs
        seconds += layer.count * time
        least += layer.count * layer.spec.useful_macs / peak
        yield from rows(
            layer.name, rate, rate / peak, us=time * 1e6, count=layer.count, kernel=kernel
        )
    peak = float(np.median([rate for *_, rate in measured]))
    geomean = math.exp(sum(map(math.log, fractions)) / len(fractions))
    yield from rows("total", macs / seconds, least / seconds, us=seconds * 1e6)
    yield make("resnet50", "peak", "gmacs_per_s", peak / 1e9, "GMAC/s", layer="peak")
    yield make("resnet50", "tvmquant-int8", "fraction_of_peak", geomean, "", layer="geomean")


def layer_runner(spec: conv2d.Conv2DSpec, machine: Machine) -> tuple[Runner, str]:
    """Return a function that runs a layer once on random operands, and the kernel's name."""
    flat = spec.flattened()
    rng = np.random.default_rng(0)
    window = (spec.outputs, *spec.kernel, spec.channels // spec.groups)
    # within what `tvmquant.weight_pairs` makes of the weights where a target needs it
    weight = rng.integers(-64, 65, window, dtype=np.int8)
    flat = dataclasses.replace(flat, chain=conv2d.provable_chain(weight, flat))
    tiling = conv2d.target_tiling(flat, machine)
    kernel = conv2d.kernel(flat, tiling)
    arguments = [random_argument(rng, parameter) for parameter in kernel.params]
    arguments[1] = tvm.runtime.tensor(conv2d.pack_weight(weight, flat, tiling))
    return bound(kernel, machine, arguments), str(kernel.attrs["tvmquant.kernel"])


def random_argument(rng: np.random.Generator, parameter: tirx.Var) -> tvm.runtime.Tensor:
    shape, dtype = tuple(int(v) for v in parameter.ty.shape), str(parameter.ty.dtype)
    # 32-bit operands are multipliers and shifts: small, so that a shift is one
    high = 16 if dtype == "int32" else np.iinfo(dtype).max + 1
    return tvm.runtime.tensor(rng.integers(0, high, shape, dtype=dtype))


def bound(function: tirx.PrimFunc, machine: Machine, arguments: list[Any]) -> Runner:
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    compiled = tvm.compile(module, target=machine.target)
    entry = compiled["main"]
    _start_threads(machine.threads)
    return lambda: entry(*arguments)


def _start_threads(threads: int) -> None:
    """Set TVM's thread pool, and make sure that it has as many threads as the rows will say.

    Raises
    ------
    TargetError
        When the pool was made earlier in this process, with fewer threads.
    """
    # the pool never grows beyond what this said when it was made: by default half the processors
    os.environ["TVM_NUM_THREADS"] = str(threads)
    tvm.get_global_func("runtime.config_threadpool")(0, threads)
    found = int(tvm.get_global_func("runtime.NumThreads")())
    if found != threads:
        raise TargetError(
            f"TVM computes with {found} threads in this process, {threads} were asked for; start a "
            f"new one with TVM_NUM_THREADS={threads} in its environment"
        )


def peak_macs(dot: DotProduct, target: str, threads: int, repeats: int = 50) -> float:
    """Return the multiply-accumulates a second that a dot product reaches on registers alone."""
    runner, macs = _peak_runner(dot, Machine.of(target, threads))
    seconds = measure_interleaved({"peak": runner}, repeats=repeats, warmup=3)["peak"]
    return macs / min(seconds)


def useful_macs(module: tvm.IRModule, batch: int) -> dict[str, int]:
    """Return the multiply-accumulates of every convolution of an L2 module, without padding."""
    found = {}
    for _, call in bindings_of(module["main"]):
        if not qop.is_call(call, qop.QCONV2D):
            continue
        attrs = qop.attributes(call)
        height, width, channels = (int(v) for v in call.args[0].ty.shape.values[1:])
        outputs, *window, _ = qop.constant_array(call.args[1]).shape
        spec = conv2d.Conv2DSpec(
            batch, height, width, channels, outputs, tuple(window), tuple(attrs["strides"]),
            tuple(attrs["padding"]), tuple(attrs["dilation"]), attrs["groups"],
        )  # fmt: skip
        found[attrs["id"]] = spec.useful_macs
    return found


def _peak_runner(dot: DotProduct, machine: Machine) -> tuple[Runner, int]:
    """Return a function that keeps every thread multiplying, and its multiply-accumulates."""
    accumulators, threads = ACCUMULATORS[dot.registers], machine.threads
    rng = np.random.default_rng(0)
    seeds = rng.integers(1, 1 << 20, (threads, accumulators, dot.lanes), dtype=np.int32)
    result = tvm.runtime.tensor(np.zeros_like(seeds))
    kernel = peak_kernel(dot, threads)
    runner = bound(kernel, machine, [tvm.runtime.tensor(seeds), result])
    return runner, threads * PEAK_STEPS * accumulators * dot.lanes * dot.group


def peak_kernel(dot: DotProduct, threads: int) -> tirx.PrimFunc:
    """Return a kernel that multiplies as fast as the machine can, on registers alone.

    Parameters
    ----------
    dot : DotProduct
    threads : int
        Parallel tasks, each of `PEAK_STEPS` steps of a dot product for every accumulator.

    Returns
    -------
    PrimFunc
        Arguments: start and final accumulators, int32 (threads, accumulators, lanes).

    Raises
    ------
    TargetError
        When the dot product is plain code (``generic``), or has no `isa.multiplier`.

    Notes
    -----
    The bytes of an accumulator are also the broadcast operand of its next dot product: each depends
    on the one before, so that the compiler can neither move it out of the loop nor merge two.
    """
    multiply_add = isa.multiplier(dot)
    if multiply_add is None:
        raise TargetError(
            "the target has no dot-product instruction whose peak could be measured; expected an "
            "x86 processor with AVX2 or later"
        )
    count, lanes = ACCUMULATORS[dot.registers], dot.lanes
    vector = f"int32x{lanes}"

    def step(acc: Any) -> Any:
        """Return the accumulator after one dot product of its own bytes with themselves."""
        operand = T.reinterpret(f"{dot.weight_dtype}x{dot.group * lanes}", acc)
        return multiply_add(dot, acc, operand, operand)

    @T.prim_func(s_tir=True)
    def peak(
        start: T.Buffer((threads, count, lanes), "int32"),
        final: T.Buffer((threads, count, lanes), "int32"),
    ) -> None:
        T.func_attr({"tirx.noalias": True})
        for task in T.parallel(threads):
            registers = T.alloc_buffer((count, lanes), "int32", scope="local")
            for j in T.unroll(count):
                registers[j, T.ramp(0, 1, lanes)] = start.vload([task, j, 0], dtype=vector)
            for _ in range(PEAK_STEPS):
                for j in T.unroll(count):
                    registers[j, T.ramp(0, 1, lanes)] = step(registers.vload([j, 0], dtype=vector))
            for j in T.unroll(count):
                final[task, j, T.ramp(0, 1, lanes)] = registers.vload([j, 0], dtype=vector)

    return peak
