"""Convolutions of one bit, or few, beside our own of eight and what counts bits in the cache.

The shapes are those of binary ResNet-18 and ReActNet that have 128 channels or more. All run by
turns: layers of bits with the kernels that pack them, the same of bytes (its INT8 kernel) and of
4-bit weights and activations, and two loop nests over operands that stay in the first-level cache,
with the register tile of a layer but without packing, padding, chains or epilogue: one of the
instructions that the layers use, one of xor and popcount. Where more pairs of planes of weight and
activation than `families.binary_conv2d.PLANES` has would have to be counted, the nest bounds what
a kernel could reach: `BOUNDED`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
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
from tvmquant.bit_choice import BitChoice
from tvmquant.formats import BINARY, BINARY_MIDDLE
from tvmquant.machine import Machine
from tvmquant.progress import Progress
from tvmquant.schedules import conv2d, families, isa, pack_bits
from tvmquant.schedules.epilogue import Epilogue
from tvmquant.schedules.families import Contraction, Operand, Vectors, Weight
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
# Layers of bits, and the narrowest that are multiplied
CHOICES = tuple(map(BitChoice.parse, ("w1a1", "w1a2", "w1a3", "w2a1", "w4a4")))
# Layers that are not counted, and the pairs of planes that would be: weights of 2 bits are two
# planes of signs, of 3 bits three of bits.
BOUNDED = {"w2a2": 4, "w1a4": 4, "w2a3": 6, "w3a3": 9}
COUNTED = {"w1a1": 1, "w1a2": 2, "w1a3": 3, "w2a1": 2}
MOST = "most_ratio_to_int8"
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
    """Measure layers of bits, of bytes and of what is between.

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
        For each choice, each layer and their ``geomean``: ``gmacs_per_s``, ``ratio_to_int8`` (of
        times: how much faster than the INT8 kernel), and of bits ``fraction_of_peak``, of the nest
        of its instructions for each pair of planes; of what is `BOUNDED` ``most_ratio_to_int8``,
        that the nest allows; and of both nests ``gmacs_per_s``.
    """
    machine = Machine.of(target, threads)
    dot = isa.binary_dot_products(machine.target)[0]
    nests = {"peak": _nest_runner(nest_of(dot), dot, machine)}
    if dot.looks_up:
        nests["xor and popcount"] = _nest_runner(bytes_nest(dot), dot, machine)
    chosen = layers(batch) if chosen is None else chosen
    make = RowMaker("kernels", threads, machine_facts(target))
    rows: list[Row] = []
    figures: dict[tuple[str, str], list[float]] = {}
    rates: dict[str, list[float]] = {name: [] for name in nests}
    for index, layer in enumerate(chosen):
        runners = {name: runner for name, (runner, _) in nests.items()}
        runners["int8"], _ = layer_runner(layer.spec, machine)
        kernels = {}
        for choice in map(str, CHOICES):
            runners[choice], kernels[choice] = _choice_runner(layer, choice, machine)
        times = measure_interleaved(runners, repeats=repeats, warmup=5)
        least = {name: min(seconds) for name, seconds in times.items()}
        for name, (_, macs) in nests.items():
            rates[name].append(macs / least[name])
        int8, macs = least["int8"], layer.spec.useful_macs
        for choice, kernel in kernels.items():
            rate = macs / least[choice]
            found = {"gmacs_per_s": rate / 1e9, "ratio_to_int8": int8 / least[choice]}
            if choice in COUNTED:
                found["fraction_of_peak"] = rate * COUNTED[choice] / rates["peak"][-1]
            more = {"us": least[choice] * 1e6, "int8_us": int8 * 1e6, "kernel": kernel}
            for name, value in found.items():
                rows.append(_row(make, choice, name, value, layer.name, **more))
                figures.setdefault((choice, name), []).append(value)
        for choice, pairs in BOUNDED.items():
            most = rates["peak"][-1] / pairs * int8 / macs
            rows.append(_row(make, choice, MOST, most, layer.name, pairs=pairs))
            figures.setdefault((choice, MOST), []).append(most)
        if progress is not None:
            progress(index + 1, len(chosen))
    for (choice, name), values in figures.items():
        rows.append(_row(make, choice, name, math.exp(np.log(values).mean()), "geomean"))
    for name, found_rates in rates.items():
        rate = float(np.median(found_rates)) / 1e9
        rows.append(make("binary", "peak", "gmacs_per_s", rate, "GMAC/s", layer=name))
    return rows


def peak_macs(target: str, threads: int, repeats: int = 50) -> float:
    """Return the multiply-accumulates a second of the nest of a target's binary kernels."""
    machine = Machine.of(target, threads)
    dot = isa.binary_dot_products(machine.target)[0]
    runner, macs = _nest_runner(nest_of(dot), dot, machine)
    return macs / min(measure_interleaved({"peak": runner}, repeats=repeats, warmup=3)["peak"])


def _row(make: RowMaker, choice: str, metric: str, value: float, layer: str, **more: Any) -> Row:
    unit = "GMAC/s" if metric == "gmacs_per_s" else ""
    return make("binary", f"tvmquant-{choice}", metric, value, unit, layer=layer, **more)


def _choice_runner(layer: Layer, name: str, machine: Machine) -> tuple[Runner, str]:
    """Return a function that runs a layer once on random numbers, and the kernel's name.

    Where the kernel reads bits, the function packs them first.
    """
    spec, choice, rng = layer.spec, BitChoice.parse(name), np.random.default_rng(0)
    contraction = Contraction(
        families.CONV2D, spec.batch, spec.height, spec.width, spec.channels, spec.outputs,
        spec.kernel, spec.strides, spec.padding,
    )  # fmt: skip
    levels = np.arange(choice.weight.qmin, choice.weight.qmax + 1)
    values = levels[levels != 0] if choice.weight == BINARY else levels
    weight = rng.choice(values, (spec.outputs, *spec.kernel, spec.channels)).astype(np.int8)
    ones, low = np.ones(spec.outputs, np.int32), choice.activation.qmin
    quantized = families.Layer(
        contraction, layer.name, weight, ones, choice.weight, choice.activation,
        input_zero_point=BINARY_MIDDLE if choice.activation.bits == 1 else low,
        input_qmin=low, input_qmax=choice.activation.qmax,
    )  # fmt: skip
    if isinstance(spec.epilogue, Epilogue):
        quantized = quantized.finished(spec.epilogue, Vectors(ones, ones, ones), "uint8")
    family = families.family_of(contraction, choice, machine, layer.name)
    lowered = family.lower(quantized, machine, lambda *_: None)
    shape = (spec.batch, spec.height, spec.width, spec.channels)
    x = rng.choice([low, choice.activation.qmax], shape).astype(np.uint8)
    steps: list[Runner] = []

    def argument(value: Operand | Weight | npt.NDArray[Any]) -> tvm.runtime.Tensor:
        if isinstance(value, Weight):
            return tvm.runtime.tensor(value.packed)
        if not isinstance(value, Operand):
            return tvm.runtime.tensor(value)
        if value.bits is None:
            return tvm.runtime.tensor(x.reshape(value.shape))
        dot, pixels = value.bits, math.prod(shape[:-1])
        packing = pack_bits.PackSpec(pixels, spec.channels, dot, value.planes)
        least = np.full((1, spec.channels), BINARY_MIDDLE, np.uint8)
        turned = np.zeros((1, packing.elements), dot.input_dtype)
        bits = np.zeros((packing.planes, pixels, packing.elements), dot.input_dtype)
        made = [tvm.runtime.tensor(a) for a in (x.reshape(pixels, -1), least, turned, bits)]
        steps.append(bound(pack_bits.kernel(packing, machine), machine, made))
        steps[0]()
        return tvm.runtime.tensor(made[-1].numpy().reshape(value.shape))

    arguments = [argument(value) for value in lowered.arguments]
    out = np.zeros(lowered.shape, np.int32 if spec.epilogue is None else np.uint8)
    steps.append(bound(lowered.kernel, machine, [*arguments, tvm.runtime.tensor(out)]))
    if len(steps) == 1:
        return steps[0], str(lowered.kernel.attrs["tvmquant.kernel"])
    pack, convolve = steps

    def both() -> None:
        pack()
        convolve()

    return both, str(lowered.kernel.attrs["tvmquant.kernel"])


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
