"""The tilings that tuning chooses from, for every family of kernels that has a tiling.

A tiling decides the kernel's function itself (padded extents, packed shapes), not only its
schedule, so the space of a layer is a list of `Tiling` values and not a trace of one function.
Every value of the list computes the layer exactly; `Family.default` is always one of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from tvm import tirx

from tvmquant.errors import TargetError
from tvmquant.machine import Machine
from tvmquant.schedules import conv2d, conv2d_tiling, conv2d_transpose, depthwise_conv2d
from tvmquant.schedules.conv2d_spec import Extents
from tvmquant.schedules.epilogue import Epilogue
from tvmquant.schedules.isa import CHAIN_GROUP, DotProduct, Stage, dot_products, narrowed

# The longest unrolled reduction of a depthwise kernel: LLVM's time grows faster than its length.
UNROLLED = 256
# Tiles that a task of a depthwise layer or of a row of pixels may take.
BLOCKS: Final = (1, 2, 3, 4, 6, 7, 8, 12, 14, 16, 24, 28, 32, 56, 64, 112, 128)


@dataclass(frozen=True)
class Family:
    """What tuning needs of one kind of kernel.

    Parameters
    ----------
    name : str
        As `tvmquant.passes.lower_to_kernels.Tilings` receives it.
    default : callable (spec, machine) -> tiling
        The analytic choice.
    others : callable (spec, machine) -> iterator of tilings
        Every tiling that computes the spec exactly; may hold the default.
    kernel : callable (spec, tiling) -> PrimFunc
        The scheduled kernel.
    figures : callable (spec, tiling, threads) -> dict of str to float
        What the time of a tiling depends on, for cost models: ``work`` (multiply-accumulates,
        padding included), ``useful`` (without padding), ``tasks`` (of the parallel loop),
        ``accumulators`` (vectors in registers) and ``task_bytes`` (input of one task).
    """

    name: str
    default: Callable[[Any, Machine], Any]
    others: Callable[[Any, Machine], Iterator[Any]]
    kernel: Callable[[Any, Any], tirx.PrimFunc]
    figures: Callable[[Any, Any, int], dict[str, float]]

    def tilings(self, spec: Any, machine: Machine) -> list[Any]:
        """Return every distinct tiling of a spec, the default first."""
        default = self.default(spec, machine)
        return list(dict.fromkeys([default, *self.others(spec, machine)]))


def timing_spec(spec: Any) -> Any:
    """Return the spec whose kernel takes as long as that of ``spec``: without mere values.

    The zero point that pads and the bounds of the clip are constants of the code, and differ
    between layers and between mixed-precision plans whose kernels are otherwise equal; of the
    proven chains of sums, only the longest that a tiling would use counts. Every tiling of the
    returned spec computes the given one exactly.

    Examples
    --------
    >>> spec = conv2d.Conv2DSpec(1, 8, 8, 16, 16, input_zero_point=7)
    >>> timing_spec(spec).input_zero_point
    0
    """
    epilogue = spec.epilogue
    if isinstance(epilogue, Epilogue):
        # the clip to a table's entries and that of an int16 have no other bounds
        bounds = {"int16": (-(2**15), 2**15 - 1)}.get(epilogue.out_dtype, (0, 255))
        epilogue = replace(epilogue, qmin=bounds[0], qmax=bounds[1])
    if isinstance(spec, conv2d.Conv2DSpec):
        spec = replace(spec, chain=_timing_chain(spec))
    return replace(spec, input_zero_point=0, epilogue=epilogue)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _divisors(value: int) -> list[int]:
    return [d for d in range(1, value + 1) if value % d == 0]


# -- conv2d ---------------------------------------------------------------------------------------


def _conv2d_tilings(spec: conv2d.Conv2DSpec, machine: Machine) -> Iterator[conv2d.Tiling]:
    """Yield the register tiles that the schedule offers, each with more ways to cut tasks."""
    offered = conv2d.tilings(spec, dot_products(machine.target), machine)
    yield from offered
    tiles = dict.fromkeys(
        replace(t, row_block=1, column_block=t.column_tile, parallel="rows") for t in offered
    )
    for tile in tiles:
        if tile.flat:  # a task computes the whole image
            continue
        across = -(-spec.out_width // tile.column_tile)
        cuts = [(block, across) for block in _divisors(spec.out_height)]
        if spec.out_height == 1:  # a flattened layer: its row is cut
            cuts = [(1, min(block, across)) for block in BLOCKS]
        for (rows, columns), parallel in itertools.product(
            dict.fromkeys(cuts), ("rows", "channels")
        ):
            yield replace(
                tile, row_block=rows, column_block=columns * tile.column_tile, parallel=parallel
            )


def _timing_chain(spec: conv2d.Conv2DSpec) -> int:
    """Return the longest chain that tilings of a spec use: equal for bounds that differ in vain."""
    if spec.chain == 0:
        return 0
    if spec.w_group:
        return math.gcd(spec.chain, spec.w_group // CHAIN_GROUP)
    steps = -(-spec.run // CHAIN_GROUP)
    longest = min(spec.chain, steps)
    exact = max(d for d in range(1, longest + 1) if steps % d == 0)
    return max(exact, -(-steps // -(-steps // longest)))


def _conv2d_figures(
    spec: conv2d.Conv2DSpec, tiling: conv2d.Tiling, threads: int
) -> dict[str, float]:
    extents = Extents.of(spec, tiling)
    rows, columns = tiling.row_block, tiling.column_block
    if tiling.flat:
        rows, columns = -(-columns // spec.out_width), spec.out_width
    reach = (rows - 1) * spec.strides[0] + spec.kernel[0]
    across = (columns - 1) * spec.strides[1] + spec.kernel[1]
    reduced = spec.run_rows * extents.taps * extents.run
    return {
        "work": float(spec.batch * extents.rows * extents.columns * extents.outputs * reduced),
        "useful": float(spec.macs),
        "tasks": float(conv2d_tiling.tasks(spec, tiling)),
        "accumulators": float(tiling.column_tile * tiling.channel_tile),
        "task_bytes": float(reach * across * spec.channels),
    }


# -- depthwise_conv2d -----------------------------------------------------------------------------


def _depthwise_tilings(
    spec: depthwise_conv2d.DepthwiseConv2DSpec, machine: Machine
) -> Iterator[depthwise_conv2d.Tiling]:
    for dot in dot_products(machine.target, Stage.TAPS, exact=True):
        # the rows that a dot product interleaves have to be neighbours
        if dot.tensorized and spec.dilation[0] > 1:
            continue
        row_tiles = [1, 2] if dot.tensorized and depthwise_conv2d.shares_rows(spec, dot) else [1]
        for vectors, row_tile, column_tile in itertools.product(
            [1, 2] if dot.tensorized else [1],
            [tile for tile in row_tiles if tile <= max(1, spec.out_height)],
            range(1, min(depthwise_conv2d.WIDEST_TILE, spec.out_width) + 1),
        ):
            first = depthwise_conv2d.Tiling(dot, vectors, row_tile, column_tile, 1, 1)
            products = depthwise_conv2d.window_products(spec, first) * dot.group
            if column_tile * row_tile * products > UNROLLED:
                continue
            steps = -(-spec.outputs // (dot.lanes * vectors))
            rows = -(-spec.out_height // row_tile)
            for row_block in {min(block, rows) for block in BLOCKS}:
                for channel_block in _divisors(steps):
                    for parallel in [True, False] if machine.threads > 1 else [False]:
                        yield depthwise_conv2d.Tiling(
                            dot, vectors, row_tile, column_tile, row_block, channel_block, parallel
                        )


def _depthwise_figures(
    spec: depthwise_conv2d.DepthwiseConv2DSpec, tiling: depthwise_conv2d.Tiling, threads: int
) -> dict[str, float]:
    height = tiling.row_block * tiling.row_tile
    products = depthwise_conv2d.window_products(spec, tiling) * tiling.dot.group
    outputs = depthwise_conv2d.padded_outputs(spec, tiling)
    rows, columns = (
        _round_up(spec.out_height, height),
        _round_up(spec.out_width, tiling.column_tile),
    )
    channels = tiling.channel_block * tiling.lanes
    tasks = spec.batch * (rows // height) * (outputs // channels) if tiling.parallel else 1
    reach = (height - 1) * spec.strides[0] + depthwise_conv2d.rows_read(spec, tiling)
    across = (columns - 1) * spec.strides[1] + spec.kernel[1]
    return {
        "work": float(spec.batch * rows * columns * outputs * products),
        "useful": float(spec.macs),
        "tasks": float(tasks),
        "accumulators": float(tiling.vectors * tiling.row_tile),
        "task_bytes": float(reach * across * channels),
    }


# -- conv2d_transpose -----------------------------------------------------------------------------


def _transpose_tilings(
    spec: conv2d_transpose.Conv2DTransposeSpec, machine: Machine
) -> Iterator[conv2d_transpose.Tiling]:
    per_group = spec.outputs // spec.groups
    steps = -(-spec.out_size[1] // spec.strides[1])
    for dot in dot_products(machine.target, exact=True):
        usable = _narrowed(dot, per_group) if spec.groups > 1 else dot
        if usable is None:
            continue
        for channel_tile in (1, 2, 3, 4):
            lanes = usable.lanes * channel_tile
            if spec.groups > 1 and per_group % lanes:
                continue
            divides = spec.outputs % lanes == 0 and all(
                e % s == 0 for e, s in zip(spec.out_size, spec.strides, strict=True)
            )
            most = conv2d_transpose.accumulators(usable)
            most //= channel_tile * spec.strides[1]
            for column_tile in range(1, min(steps, most) + 1):
                whole = divides and steps % column_tile == 0
                for fused, parallel in itertools.product(
                    [True, False] if whole else [False],
                    [True, False] if machine.threads > 1 else [False],
                ):
                    yield conv2d_transpose.Tiling(
                        usable, column_tile, channel_tile, fused, parallel
                    )


def _narrowed(dot: DotProduct, outputs: int) -> DotProduct | None:
    """Return a dot product whose lanes stay within one group of outputs, if there is one."""
    if outputs % dot.lanes == 0:
        return dot
    return None if dot.tensorized else narrowed(dot, math.gcd(outputs, dot.lanes))


def _transpose_figures(
    spec: conv2d_transpose.Conv2DTransposeSpec, tiling: conv2d_transpose.Tiling, threads: int
) -> dict[str, float]:
    rows = _round_up(spec.out_size[0], spec.strides[0])
    columns = _round_up(spec.out_size[1], spec.strides[1] * tiling.column_tile)
    outputs = conv2d_transpose.padded_outputs(spec, tiling)
    inputs = _round_up(spec.channels // spec.groups, tiling.dot.group)
    taps = math.prod(-(-k // s) for k, s in zip(spec.kernel, spec.strides, strict=True))
    useful = spec.batch * math.prod(spec.out_size) * spec.outputs * taps * spec.channels
    return {
        "work": float(spec.batch * rows * columns * outputs * taps * inputs),
        "useful": float(useful // spec.groups),
        "tasks": float(spec.batch * (rows // spec.strides[0]) if tiling.parallel else 1),
        "accumulators": float(tiling.column_tile * tiling.channel_tile * spec.strides[1]),
        "task_bytes": float(-(-spec.kernel[0] // spec.strides[0]) * spec.width * spec.channels),
    }


_FAMILIES = (
    Family("conv2d", conv2d.target_tiling, _conv2d_tilings, conv2d.kernel, _conv2d_figures),
    Family(
        "depthwise_conv2d",
        depthwise_conv2d.default_tiling,
        _depthwise_tilings,
        depthwise_conv2d.kernel,
        _depthwise_figures,
    ),
    Family(
        "conv2d_transpose",
        conv2d_transpose.default_tiling,
        _transpose_tilings,
        conv2d_transpose.kernel,
        _transpose_figures,
    ),
)

FAMILIES: Final[Mapping[str, Family]] = MappingProxyType({f.name: f for f in _FAMILIES})


def family(name: str) -> Family:
    """Return a family by its name.

    Raises
    ------
    TargetError
        If there is none of that name.
    """
    found = FAMILIES.get(name)
    if found is None:
        raise TargetError(f"no kernels are called {name!r}; expected one of {', '.join(FAMILIES)}")
    return found
