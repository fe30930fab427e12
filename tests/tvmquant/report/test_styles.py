import itertools

import pytest

from tvmquant.formats import WIDTHS
from tvmquant.report.styles import OTHER, style_of

EVERY = [f"w{w}a{a}" for w in (1, *WIDTHS) for a in (1, *WIDTHS)]


def test_every_choice_has_a_style_of_its_own():
    grouped = [f"w4a8g{size}" for size in (32, 64, 128)]
    styles = [style_of(name) for name in (*EVERY, *grouped)]
    assert len(set(styles)) == len(styles)
    assert OTHER not in styles
    assert style_of("chosen") == style_of("w9a9") == OTHER


@pytest.mark.parametrize("field", ["colour", "pattern", "symbol"])
def test_uniform_widths_differ_in_everything(field):
    found = [getattr(style_of(f"w{bits}a{bits}"), field) for bits in (1, *WIDTHS)]
    assert len(set(found)) == len(found)


def test_the_usual_choices_are_told_apart_without_colour():
    names = ("w8a8", "w8a4", "w4a8", "w4a4", "w4a8g32", "w6a6", "w2a8")
    for one, other in itertools.combinations(names, 2):
        assert style_of(one).pattern != style_of(other).pattern


@pytest.mark.parametrize("name", EVERY)
def test_white_text_can_be_read_on_it(name):
    red, green, blue = (int(style_of(name).colour[i : i + 2], 16) / 255 for i in (1, 3, 5))

    def linear(part: float) -> float:
        return part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4

    luminance = 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue)
    assert 1.05 / (luminance + 0.05) >= 4.5
