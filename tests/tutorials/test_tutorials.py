import os
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).resolve().parents[2] / "tutorials").glob("[0-9]*.py"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all tutorials run, since later ones take up what the first one left."""
    return tmp_path_factory.mktemp("tutorials")


@pytest.mark.xdist_group("tutorials")
@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(tutorial, folder):
    done = subprocess.run(
        [sys.executable, tutorial],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONWARNINGS": "error::DeprecationWarning:tvmquant"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


def test_they_are_numbered_without_gaps():
    assert [path.name[:2] for path in TUTORIALS] == [f"{i + 1:02}" for i in range(len(TUTORIALS))]
