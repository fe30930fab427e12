"""Random graphs that ONNX Runtime quantized: imports compute what their files say, in integers.

``python -m tests.tvmquant.random_quantized`` examines thousands.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tvmquant.random_quantized import LENGTHS, QuantizedGraph, examine

SEEDS = st.integers(0, 2**32 - 1)
LENGTH = st.integers(LENGTHS[0], LENGTHS[-1])


def check(seed: int, length: int, *, built: bool) -> None:
    found = examine(QuantizedGraph(seed, length), built=built)
    assert not found.wrong, f"{found.kind}: {found.text}"


@settings(max_examples=16)
@given(SEEDS, LENGTH)
def test_imports_compute_what_files_say(seed: int, length: int) -> None:
    check(seed, length, built=False)


@pytest.mark.slow
@settings(max_examples=400)
@given(SEEDS, LENGTH, st.booleans())
def test_many_imports(seed: int, length: int, built: bool) -> None:
    check(seed, length, built=built)
