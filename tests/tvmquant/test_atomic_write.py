import os
import signal
import subprocess
import sys

import pytest

from tvmquant.atomic_write import atomic_write


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text("old")
    return path


def test_the_file_is_replaced_when_the_block_ends(path):
    with atomic_write(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_new_file_appears(tmp_path):
    with atomic_write(tmp_path / "new.txt") as part:
        part.write_text("new")
        assert not (tmp_path / "new.txt").exists()
    assert (tmp_path / "new.txt").read_text() == "new"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_writer_that_fails_leaves_the_old_file_alone(path, error):
    def write_half():
        with atomic_write(path) as part:
            part.write_text("ne")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_two_writers_do_not_meet(path):
    with atomic_write(path) as first, atomic_write(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # whose block ended last
    assert list(path.parent.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_file_alone(path):
    code = f"""
import os, signal
from tvmquant.atomic_write import atomic_write
with atomic_write({str(path)!r}) as part:
    part.write_text("ne")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_where_nothing_can_be_put_nothing_is_left(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError), atomic_write(tmp_path / "folder") as part:  # noqa: PT011
        part.write_text("new")
    assert os.listdir(tmp_path) == ["folder"]
