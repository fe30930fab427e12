"""Default tilings of real layers, for every instruction set and number of threads."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.schedules.network_layers import network_layers
from tvmquant.machine import Machine
from tvmquant.schedules.conv2d_spec import Conv2DSpec
from tvmquant.schedules.conv2d_tasks import balance, tasks
from tvmquant.schedules.conv2d_tiling import default_tiling
from tvmquant.schedules.isa import dot_products
from tvmquant.schedules.isa.x86 import VNNI_512

TARGETS = {
    "generic": "x86-64",
    "AVX2": "haswell",
    "AVX-VNNI": "alderlake",
    "AVX512": "skylake-avx512",
    "AVX512-VNNI": "znver4",
}
# of each thread: a few microseconds, below which some may have nothing to do
LEAST_MACS = 100_000


def check(target: str, threads: int, specs: Sequence[Conv2DSpec]) -> None:
    machine = Machine.of(TARGETS[target], threads)
    dots = dot_products(machine.target)
    for spec in specs:
        tiling = default_tiling(spec, dots, machine)
        if tiling.parallel == "none":
            assert spec.macs < 4e6, spec
            continue
        if spec.macs < LEAST_MACS * threads:
            continue
        count = tasks(spec, tiling)
        assert count >= threads, (spec, tiling)
        assert balance(count, threads) >= 0.9, (spec, tiling)


@pytest.mark.parametrize("threads", [2, 7])
@pytest.mark.parametrize("target", ["AVX2", "AVX512-VNNI"])
def test_every_thread_has_as_much_to_do(target: str, threads: int) -> None:
    check(target, threads, network_layers()[::3])


@pytest.mark.slow
@pytest.mark.parametrize("threads", range(2, 9))
@pytest.mark.parametrize("target", TARGETS)
def test_every_thread_of_any_machine_has_as_much_to_do(target: str, threads: int) -> None:
    check(target, threads, network_layers())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [7, 14, 28, 56])
def test_accumulators_stay_on_the_stack(size: int, threads: int) -> None:
    """Of AVX512-VNNI: in 3x3 layers those on the heap are stored in every step."""
    channels = 64 * 56 // size
    spec = Conv2DSpec(1, size, size, channels, channels, (3, 3), padding=(1, 1, 1, 1))
    machine = Machine.of("znver4", threads)
    tiling = default_tiling(spec, dot_products(machine.target), machine)
    assert tiling.dot == VNNI_512
    assert tiling.column_tile * tiling.channel_tile <= VNNI_512.cost.stacked
    assert not tiling.flat


def test_a_fork_must_pay() -> None:
    machine = Machine.of("znver4", 2)
    dots = dot_products(machine.target)
    small, large = Conv2DSpec(1, 7, 7, 24, 24), Conv2DSpec(1, 1, 1, 2048, 1000)
    assert default_tiling(small.flattened(), dots, machine).parallel == "none"
    assert (
        default_tiling(large.flattened(), dots, machine).parallel == "channels"
    )  # to read the weights
