import pytest

from tvmquant.bit_choice import DEFAULT_CHOICES, GROUP_SIZES, BitChoice
from tvmquant.errors import QuantizationError

EVERY = [*DEFAULT_CHOICES, BitChoice(8, 4), *(BitChoice(4, 8, size) for size in GROUP_SIZES)]


@pytest.mark.parametrize("choice", EVERY)
def test_text_round_trips(choice):
    assert BitChoice.parse(str(choice)) == choice
    assert BitChoice.parse(f" {str(choice).upper()} ") == choice


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int8", "a form such as w8a8"),
        ("w8", "a form such as w8a8"),
        ("w3a8", "w3a8: expected weights of 4 or 8 bits"),
        ("w8a16", "activations of 4 or 8 bits"),
        ("w8a8g32", "groups hold 32, 64 or 128 weights of 4 bits"),
        ("w4a8g7", "groups hold 32, 64 or 128 weights of 4 bits"),
    ],
)
def test_what_is_no_choice(text, message):
    with pytest.raises(QuantizationError, match=message):
        BitChoice.parse(text)
