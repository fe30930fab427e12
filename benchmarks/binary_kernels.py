"""Convolutions of one bit beside our own of eight, and against what counts bits in the first cache.

The shapes are those of binary ResNet-18 and ReActNet that have 128 channels or more. All run by
turns: a layer of bits with the kernel that packs them, the same of bytes (its INT8 kernel), and two
loop nests over operands that stay in the first-level cache, with the register tile of a layer but
without packing, padding, chains or epilogue: one of the instructions that the layers use, one of
xor and popcount.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.script import tirx as T  # noqa: N812  (TVMScript's customary name)

from benchmarks.kernels import (
    Layer,
    Runner,
    bound,
    layer_of,
    layer_runner,
    random_argument,
)
from benchmarks.rows import Row, RowMaker, machine_facts
from tvmquant.benchmark import measure_interleaved
from tvmquant.machine import Machine
from tvmquant.progress import Progress
from tvmquant.schedules import conv2d, isa, pack_bits
from tvmquant.schedules.isa import DotProduct
from tvmquant.schedules.isa.binary_stages import ROW
from tvmquant.schedules.isa.x86_binary import looked_up

# height, channels -> outputs, window
SHAPES = (
    (56, 128, 128, 3),
    (28, 128, 128, 3),
    (28, 256, 256, 1),
    (14, 256, 256, 3),
    (14, 512, 512, 1),
    (7, 512, 512, 3),
)
# Pixels and vectors of outputs of the nests' tiles, of 16 registers and of 32.
TILES = {16: (4, 2), 32: (4, 4)}
# Steps whose operands stay in the cache, and how often they are repeated: about 0.2 ms.
STEPS = 60
REPEATS = 2000


def layers(batch: int = 1) -> list[Layer]:
    """Return the layers, with the epilogue of an INT8 network."""
    return [layer_of(batch, size, *channels, 1) for size, *channels in SHAPES]


def run(
    *,
    threads: int,
    target: str = "native",
    batch: int = 1,
    repeats: int = 100,
    progress: Progress | None = None,
    chosen: list[Layer] | None = None,
) -> list[Row]:
    """Measure layers of bits and of bytes.

    Parameters
    ----------
    threads : int
    target : str
        As of `tvmquant.build`; must run on this machine.
    batch : int
        Images.
    repeats : int
        Timed runs of each; the least times count, for each is disturbed in some runs.
    progress : callable (done, total), optional
        Called with the number of layers.
    chosen : list of Layer, optional
        Default: `layers`.

    Returns
    -------
    list of Row
        For each layer and their ``geomean``: ``gmacs_per_s``, ``ratio_to_int8`` (of times: how much
        faster than the INT8 kernel) and ``fraction_of_peak`` (of the nest of its instructions); and
        of both nests ``gmacs_per_s``.
    """
    machine = Machine.of(target, threads)
    dot = isa.binary_dot_products(machine.target)[0]
    nests = {"peak": _nest_runner(nest_of(dot), dot, machine)}
    if dot.looks_up:
        nests["xor and popcount"] = _nest_runner(bytes_nest(dot), dot, machine)
    chosen = layers(batch) if chosen is None else chosen
    make = RowMaker("kernels", threads, machine_facts(target))
    rows: list[Row] = []
    figures: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {name: [] for name in nests}
    for index, layer in enumerate(chosen):
        int8, _ = layer_runner(layer.spec, machine)
        binary, kernel = _binary_runner(layer.spec, machine)
        runners = {**{name: runner for name, (runner, _) in nests.items()}, "int8": int8}
        times = measure_interleaved({**runners, "binary": binary}, repeats=repeats, warmup=5)
        least = {name: min(seconds) for name, seconds in times.items()}
        for name, (_, macs) in nests.items():
            rates[name].append(macs / least[name])
        rate = layer.spec.useful_macs / least["binary"]
        found = {
            "gmacs_per_s": rate / 1e9,
            "ratio_to_int8": least["int8"] / least["binary"],
            "fraction_of_peak": rate / rates["peak"][-1],
        }
        more = {"us": least["binary"] * 1e6, "int8_us": least["int8"] * 1e6, "kernel": kernel}
        rows += [_row(make, name, value, layer.name, **more) for name, value in found.items()]
        for name, value in found.items():
            figures.setdefault(name, []).append(value)
        if progress is not None:
            progress(index + 1, len(chosen))
    for name, values in figures.items():
        rows.append(_row(make, name, math.exp(np.log(values).mean()), "geomean"))
    for name, found_rates in rates.items():
        rate = float(np.median(found_rates)) / 1e9
        rows.append(make("binary", "peak", "gmacs_per_s", rate, "GMAC/s", layer=name))
    return rows


def _row(make: RowMaker, metric: str, value: float, layer: str, **more: Any) -> Row:
    unit = "GMAC/s" if metric == "gmacs_per_s" else ""
    return make("binary", "tvmquant-w1a1", metric, value, unit, layer=layer, **more)


def _binary_runner(spec: conv2d.Conv2DSpec, machine: Machine) -> tuple[Runner, str]:
    """Return a function that packs random signs and runs a layer of them, and its kernel's name."""
    flat = dataclasses.replace(spec, binary=True).flattened()
    rng = np.random.default_rng(0)
    weight = rng.choice([-1, 1], (spec.outputs, *spec.kernel, spec.channels)).astype(np.int8)
    tiling = conv2d.target_tiling(flat, machine)
    kernel = conv2d.kernel(flat, tiling)
    packing = pack_bits.kernel(
        pack_bits.PackSpec(spec.batch * spec.height * spec.width, spec.channels, tiling.dot),
        machine,
    )
    signs = [random_argument(rng, parameter) for parameter in packing.params]
    signs[2] = tvm.runtime.tensor(np.zeros_like(signs[2].numpy()))
    pack = bound(packing, machine, signs)
    pack()
    arguments = [random_argument(rng, parameter) for parameter in kernel.params]
    elements = signs[-1].numpy().reshape(conv2d.input_shape(flat, tiling))
    arguments[0] = tvm.runtime.tensor(elements)
    arguments[1] = tvm.runtime.tensor(conv2d.pack_weight(weight, flat, tiling))
    if tiling.dot.looks_up:
        arguments[2] = tvm.runtime.tensor(conv2d.counts())
    layer = bound(kernel, machine, arguments)

    def both() -> None:
        pack()
        layer()

    return both, str(kernel.attrs["tvmquant.kernel"])


# -- loop nests over the first-level cache ---------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Nest:
    """What a loop nest repeats.

    Attributes
    ----------
    dtype : str
        Of its operands and its sums.
    lanes : int
        Elements of a vector.
    element_dtype : str
        Of what is read of a pixel in a step.
    products : int
        That one vector counts in a step.
    term : function of (table, element, weights)
        The counts of an element, a scalar, and a vector of weights; of a table of counts.
    """

    dtype: str
    lanes: int
    element_dtype: str
    products: int
    term: Callable[[Any, Any, Any], Any]


def nest_of(dot: DotProduct) -> Nest:
    """Return what the layers of a dot product repeat."""
    if not dot.looks_up:
        return _words(dot.lanes)

    def looked(table: Any, element: Any, weights: Any) -> Any:
        row = table.vload([T.cast(element, "int32")], dtype=f"uint8x{ROW}")
        return looked_up(dot, row, weights)

    return Nest("uint8", dot.lanes, "uint8", dot.lanes * dot.values, looked)


def bytes_nest(dot: DotProduct) -> Nest:
    """Return xor and popcount on a vector of the bytes of words, for registers of a dot product."""

    def counted(_: Any, element: Any, weights: Any) -> Any:
        words = T.broadcast(element, dot.lanes // 4)
        return tirx.popcount(T.reinterpret(f"uint8x{dot.lanes}", words) ^ weights)

    return Nest("uint8", dot.lanes, "uint32", dot.lanes * 8, counted)


def _words(lanes: int) -> Nest:
    def counted(_: Any, element: Any, weights: Any) -> Any:
        return tirx.popcount(T.broadcast(element, lanes) ^ weights)

    return Nest("uint32", lanes, "uint32", lanes * 32, counted)


def nest_kernel(nest: Nest, tile: tuple[int, int], threads: int) -> tirx.PrimFunc:
    """Return a kernel whose every task counts `REPEATS` times the same `STEPS` steps.

    Parameters
    ----------
    nest : Nest
    tile : (int, int)
        Pixels, and vectors of outputs.
    threads : int
        Tasks.

    Returns
    -------
    PrimFunc
        Arguments: table, elements (threads, steps, pixels), weights (threads, steps, vectors,
        lanes) and sums (threads, pixels, vectors, lanes), which wrap around.
    """
    (pixels, vectors), lanes, dtype = tile, nest.lanes, nest.dtype
    vector = f"{dtype}x{lanes}"

    @T.prim_func(s_tir=True)
    def kernel(
        table: T.Buffer((ROW * ROW,), "uint8"),
        elements: T.Buffer((threads, STEPS, pixels), nest.element_dtype),
        weights: T.Buffer((threads, STEPS, vectors, lanes), dtype),
        sums: T.Buffer((threads, pixels, vectors, lanes), dtype),
    ) -> None:
        T.func_attr({"tirx.noalias": True})
        for task in T.parallel(threads):
            registers = T.alloc_buffer((pixels, vectors, lanes), dtype, scope="local")
            for p, v in T.grid(pixels, vectors):
                registers[p, v, T.ramp(0, 1, lanes)] = T.broadcast(T.Cast(dtype, 0), lanes)
            for _, s in T.grid(REPEATS, STEPS):
                for p in T.unroll(pixels):
                    for v in T.unroll(vectors):
                        registers[p, v, T.ramp(0, 1, lanes)] = registers.vload(
                            [p, v, 0], dtype=vector
                        ) + nest.term(
                            table,
                            elements[task, s, p],
                            weights.vload([task, s, v, 0], dtype=vector),
                        )
            for p, v in T.grid(pixels, vectors):
                sums[task, p, v, T.ramp(0, 1, lanes)] = registers.vload([p, v, 0], dtype=vector)

    return kernel


def _nest_runner(nest: Nest, dot: DotProduct, machine: Machine) -> tuple[Runner, int]:
    """Return a function that keeps every thread counting, and its products."""
    tile, threads = TILES[dot.registers], machine.threads
    kernel = nest_kernel(nest, tile, threads)
    rng = np.random.default_rng(0)
    arguments = [random_argument(rng, parameter) for parameter in kernel.params]
    arguments[0] = tvm.runtime.tensor(conv2d.counts())
    if nest.element_dtype == "uint8":  # where a row of the table begins
        arguments[1] = tvm.runtime.tensor(arguments[1].numpy() // ROW * ROW)
    macs = threads * REPEATS * STEPS * math.prod(tile) * nest.products
    return bound(kernel, machine, arguments), macs
