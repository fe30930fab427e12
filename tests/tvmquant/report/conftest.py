from pathlib import Path

import pytest

from tests.tvmquant.report.libraries import build_mixture
from tvmquant.deploy.manifest import Manifest
from tvmquant.mixed_precision import RECORD_NAME, MixedPrecisionRecord


@pytest.fixture(scope="session")
def mixed_library(tmp_path_factory) -> Path:
    """A library with layers of 8 and 4 bits and the record of its plan; not to be written to."""
    return build_mixture(tmp_path_factory.mktemp("mixed"))


@pytest.fixture
def manifest(mixed_library) -> Manifest:
    return Manifest.load(mixed_library)


@pytest.fixture
def record(mixed_library) -> MixedPrecisionRecord:
    return MixedPrecisionRecord.load(mixed_library / RECORD_NAME)
