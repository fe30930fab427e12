"""Random graphs of supported operators: no foreign exception, the same numbers, little noise.

``python -m tests.tvmquant.random_graphs`` examines thousands.
"""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.tvmquant.random_graphs import LENGTHS, RandomGraph, examine

SEEDS = st.integers(0, 2**32 - 1)
LENGTH = st.integers(LENGTHS[0], LENGTHS[-1])


def check(seed: int, length: int, *, built: bool) -> None:
    found = examine(RandomGraph(seed, length), built=built)
    assert not found.wrong, f"{found.kind}: {found.text}"


@settings(max_examples=25)
@given(SEEDS, LENGTH)
def test_random_graphs_compute_what_they_should(seed: int, length: int) -> None:
    check(seed, length, built=False)


@settings(max_examples=6)
@given(SEEDS, LENGTH)
@example(1190942, 9)  # 4-bit weights of one channel
def test_libraries_of_random_graphs_compute_what_the_simulator_does(seed: int, length: int) -> None:
    check(seed, length, built=True)


@pytest.mark.slow
@settings(max_examples=400)
@given(SEEDS, LENGTH, st.booleans())
def test_many_random_graphs(seed: int, length: int, built: bool) -> None:
    check(seed, length, built=built)


def test_shorter_graphs_begin_as_longer_ones() -> None:
    short, long = RandomGraph(7, 4), RandomGraph(7, 9)
    assert long.nodes[: len(short.nodes)] == short.nodes
