"""Tests on emulated processors are skipped, saying so, where there is no emulator."""

import pytest

from benchmarks.aarch64.emulator import PROCESSORS, Processor, missing


@pytest.fixture(params=PROCESSORS, ids=lambda processor: processor.name.split(",")[0])
def processor(request: pytest.FixtureRequest) -> Processor:
    """Return each processor; skip where it cannot be emulated."""
    if reason := missing():
        pytest.skip(f"AArch64 is not emulated: {reason}")
    found: Processor = request.param
    return found
