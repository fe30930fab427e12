import importlib.metadata
from typing import Literal

import pytest
from pydantic import BaseModel

from tvmquant.errors import DataError
from tvmquant.stage_cache import taken_up


class StoneRecord(BaseModel):
    schema_version: Literal[3] = 3
    name: str


class NewStoneRecord(StoneRecord):
    schema_version: Literal[4] = 4


@pytest.fixture
def take(tmp_path):
    """Return a function that says whether the stage ran, and what came of it."""

    def run(*follows_from, cls=StoneRecord, folder=tmp_path / "new" / "folder", name="flint"):
        runs = []

        def stage():
            runs.append(name)
            return cls(name=name)

        record, found = taken_up(folder, "stones", cls, follows_from, stage)
        assert found is not bool(runs)
        return bool(runs), record.name

    return run


def test_what_was_made_is_taken_up(take, tmp_path):
    assert take("sea", {"depth": 3, "salt": None}) == (True, "flint")
    assert take("sea", {"salt": None, "depth": 3}, name="slate") == (False, "flint")
    (path,) = (tmp_path / "new" / "folder").iterdir()
    assert path.name.startswith("stones-")


def test_what_follows_from_something_else_is_made(take, monkeypatch):
    take("sea", 3)
    assert take("sea", 4)[0]
    assert take("sea", 3, cls=NewStoneRecord)[0]
    monkeypatch.setattr(importlib.metadata, "version", lambda _name: "99.0")
    assert take("sea", 3)[0]


def test_a_damaged_record_is_made_again(take, tmp_path, caplog):
    take("sea")
    (path,) = (tmp_path / "new" / "folder").iterdir()
    path.write_text('{"schema_version": 3')
    assert take("sea", name="slate") == (True, "slate")
    assert path.name in caplog.text
    assert take("sea", name="marble") == (False, "slate")


def test_without_a_folder_nothing_is_kept(take, tmp_path):
    assert take("sea", folder=None)[0]
    assert take("sea", folder=None)[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError])
def test_a_stage_that_fails_leaves_nothing(tmp_path, error):
    def fail():
        raise error

    with pytest.raises(error):
        taken_up(tmp_path, "stones", StoneRecord, ["sea"], fail)
    assert list(tmp_path.iterdir()) == []
