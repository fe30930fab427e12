from dataclasses import replace

import pytest

from tvmquant.bit_choice import DEFAULT_CHOICES, W4A4, W4A8, W8A8, BitChoice
from tvmquant.mixed_precision import Wishes

WISHES = Wishes(latency="0.8x", size="1MB", choices=(W4A8,), pinned={"conv": W4A4})


def test_only_budgets_that_are_given_are_named():
    assert WISHES.budgets == {"latency": "0.8x", "size": "1MB"}
    assert Wishes().budgets == {}


def test_what_some_layer_may_take_is_measured_once():
    assert WISHES.measured == (W8A8, W4A8, W4A4)
    assert Wishes(choices=(W4A8, W8A8), pinned={"conv": W4A8}).measured == (W8A8, W4A8)
    assert Wishes().measured == DEFAULT_CHOICES


@pytest.mark.parametrize(
    "change",
    [
        {"latency": "0.7x"},
        {"size": None},
        {"bops": "1G"},
        {"choices": (W4A8, BitChoice.parse("w4a8g32"))},
        {"pinned": {"conv": W4A8}},
        {"pin_ends": False},
        {"sensitivity": "fisher"},
    ],
)
def test_settings_tell_wishes_apart(change):
    assert replace(WISHES, **change).settings() != WISHES.settings()


def test_settings_depend_neither_on_an_order_nor_on_naming_w8a8():
    pins = {"conv": W4A4, "fc": W8A8}
    one = Wishes(choices=(W4A8, W4A4), pinned=pins)
    other = Wishes(choices=(W8A8, W4A4, W4A8), pinned=dict(reversed(pins.items())))
    assert one.settings() == other.settings()
