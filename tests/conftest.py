"""Fixtures that tests of several packages share."""

import os
from pathlib import Path

import hypothesis
import pytest

# The same examples in every run, however slow or busy the machine is.
hypothesis.settings.register_profile(
    "tvmquant",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tvmquant")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Return the folder of real models and data; skip, saying so, where it is absent."""
    default = Path(__file__).resolve().parents[1].parent / "shared"
    path = Path(os.environ.get("TVMQUANT_SHARED", default))
    if not path.is_dir():
        pytest.skip(f"no real models and data at {path}; set TVMQUANT_SHARED to their folder")
    return path
