from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypedDict

import pytest

from tvmquant.deploy.checked_json import DamageError, read_as


class Place(TypedDict, total=False):
    town: str


@dataclass
class Stone:
    name: str
    grams: float
    layers: list[int] = field(default_factory=list)
    colour: str | None = None
    place: Place | None = None
    more: Any = None
    counts: dict[str, int] = field(default_factory=dict)


@dataclass
class Cairn:
    stones: list[Stone]


def test_a_document_becomes_what_its_type_says():
    document = {
        "name": "flint", "grams": 3, "layers": [1, 2], "colour": None, "more": [None, "x"],
        "place": {"town": "Dover", "street": 7}, "counts": {"a": 1}, "later": "unknown",
    }  # fmt: skip
    assert read_as({"stones": [document, {"name": "slate", "grams": 0.5}]}, Cairn) == Cairn(
        [
            Stone("flint", 3, [1, 2], None, {"town": "Dover", "street": 7}, [None, "x"], {"a": 1}),
            Stone("slate", 0.5),
        ]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, r"'stones\[0\].name' is not of type string"),
        ({"grams": "3"}, r"'stones\[0\].grams' is not of type number"),
        ({"grams": True}, r"'stones\[0\].grams' is not of type number"),
        ({"layers": [1, 2.5]}, r"'stones\[0\].layers\[1\]' is not of type whole number"),
        ({"layers": {}}, r"'stones\[0\].layers' is not of type list"),
        ({"colour": 7}, r"'stones\[0\].colour' is not of type string"),
        ({"place": {"town": 7}}, r"'stones\[0\].place.town' is not of type string"),
        ({"counts": {"a": "b"}}, r"'stones\[0\].counts.a' is not of type whole number"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(DamageError, match=message):
        read_as({"stones": [{"name": "flint", "grams": 3, **change}]}, Cairn)


def test_what_is_missing_is_named():
    with pytest.raises(DamageError, match=r"'stones\[0\].grams' is missing"):
        read_as({"stones": [{"name": "flint"}]}, Cairn)
    with pytest.raises(DamageError, match="'stones' is missing"):
        read_as({}, Cairn)
