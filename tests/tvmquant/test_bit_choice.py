import pytest

from tvmquant.bit_choice import DEFAULT_CHOICES, W8A8, BitChoice
from tvmquant.errors import QuantizationError
from tvmquant.formats import GROUP_SIZES, WIDTHS

EVERY = [
    *(f"w{w}a{a}" for w in (1, *WIDTHS) for a in (1, *WIDTHS)),
    *(f"w{w}a{a}g{size}" for w in (2, 3, 4) for a in WIDTHS for size in GROUP_SIZES),
]


@pytest.mark.parametrize("name", EVERY)
def test_text_round_trips(name):
    choice = BitChoice.parse(name)
    assert str(choice) == name
    assert BitChoice.parse(f" {name.upper()} ") == choice
    assert (choice.weight.container, choice.activation.container) == ("int8", "uint8")


def test_the_default_is_eight_bits():
    assert BitChoice() == W8A8
    assert DEFAULT_CHOICES[0] == W8A8


def test_choices_are_listed_from_the_widest_to_the_narrowest():
    names = ["w8a8", "w8a7", "w7a8", "w4a8", "w4a8g32", "w4a8g128", "w4a4", "w2a2", "w1a8", "w1a1"]
    choices = [BitChoice.parse(name) for name in names]
    assert sorted(reversed(choices), key=lambda choice: choice.narrowness) == choices


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int8", "a form such as w8a8"),
        ("w8", "a form such as w8a8"),
        ("w0a8", "'w0a8': expected weights and activations of 1 to 8 bits"),
        ("w8a16", "'w8a16': expected weights and activations of 1 to 8 bits"),
        ("w16a16", "1 to 8 bits"),
        ("w1a8g32", "weights of 1 bit have no groups"),
        ("w8a8g32", "'w8a8g32'.* groups hold weights of 2 to 4 bits"),
        ("w5a8g32", "times a multiplier of up to 16 leave 8 bits"),
        ("w4a8g7", "'w4a8g7'.* groups hold 32, 64 or 128 weights"),
    ],
)
def test_what_is_no_choice(text, message):
    with pytest.raises(QuantizationError, match=message):
        BitChoice.parse(text)
