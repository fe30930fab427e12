import json
import os
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from tvmquant.errors import DataError
from tvmquant.records import load_record, save_record


class Pebble(BaseModel):
    model_config = ConfigDict(extra="forbid")

    grams: float = Field(gt=0)


class StoneRecord(BaseModel):
    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[3] = 3
    name: str
    pebbles: list[Pebble] = []


def load(path):
    return load_record(StoneRecord, path, "collect stones again")


def test_what_was_saved_is_read(tmp_path):
    path = tmp_path / "stones.json"
    record = StoneRecord(name="Kieselstein \N{LATIN SMALL LETTER SHARP S}", pebbles=[{"grams": 3}])
    save_record(record, path)
    assert load(path) == record
    assert json.loads(path.read_bytes())["schema_version"] == 3
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("{", ["is not a JSON file", "collect stones again"]),
        (b"\xff\xfe\x00", ["is not a JSON file"]),
        ('{"schema_version": 3, "name": "flint", "name": "slate"}', ["'name' is there twice"]),
        ("[3]", ["schema_version = None", "reads 3"]),
        ('{"name": "flint"}', ["schema_version = None", "reads 3"]),
        ('{"schema_version": 2, "name": "flint"}', ["schema_version = 2", "reads 3"]),
        ('{"schema_version": 3}', ["name", "required"]),
        ('{"schema_version": 3, "name": 7}', ["name = 7", "string"]),
        ('{"schema_version": 3, "name": "flint", "size": 1}', ["size = 1", "not permitted"]),
        (
            '{"schema_version": 3, "name": "flint", "pebbles": [{"grams": 1}, {"grams": -1}]}',
            ["pebbles.1.grams = -1", "greater than 0"],
        ),
    ],
)
def test_damage_is_named(tmp_path, content, parts):
    path = tmp_path / "stones.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        load(path)
    for part in [f"stone record {str(path)!r}", "collect stones again", *parts]:
        assert part in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"stone record .*nothing\.json' cannot be read: No such"):
        load(tmp_path / "nothing.json")
    with pytest.raises(DataError, match="Is a directory"):
        load(tmp_path)


def test_json_that_is_nested_too_deeply(tmp_path):
    path = tmp_path / "stones.json"
    path.write_text("[" * 200_000)
    with pytest.raises(DataError, match=r"stone record .* is not a JSON file"):
        load(path)


@pytest.mark.parametrize("target", ["missing/stones.json", "folder"])
def test_what_cannot_be_written(tmp_path, target):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"stone record cannot be written to .*: [A-Z]"):
        save_record(StoneRecord(name="flint"), tmp_path / target)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("fails", ["replace", "write"])
def test_a_failure_keeps_the_old_file(tmp_path, monkeypatch, fails):
    path = tmp_path / "stones.json"
    save_record(StoneRecord(name="old"), path)

    def fail(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if fails == "replace":
            patch.setattr(os, "replace", fail)
        else:
            patch.setattr("pathlib.Path.write_text", fail)
        with pytest.raises(DataError, match="No space left on device"):
            save_record(StoneRecord(name="new"), path)
    assert load(path).name == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interruption_leaves_no_temporary_file(tmp_path, monkeypatch):
    path = tmp_path / "stones.json"

    def interrupt(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_record(StoneRecord(name="new"), path)
    assert list(tmp_path.iterdir()) == []
