import pytest

from tvmquant.bit_choice import DEFAULT_CHOICES, W4A4, W4A8, W8A8
from tvmquant.cli.options import parse_input_shapes, parse_time, parse_wishes
from tvmquant.errors import DataError, TuningError, TVMQuantError


def test_shapes_by_name():
    assert parse_input_shapes(["a=1,3,8,8", "scope/b=c=?, 5"]) == {
        "a": (1, 3, 8, 8),
        "scope/b=c": (None, 5),
    }
    assert parse_input_shapes(None) == {}


@pytest.mark.parametrize("spec", ["", "x", "x=", "=1,2", "x=1,,2", "x=0,3", "x=-1", "x=a,b"])
def test_what_is_no_shape(spec):
    with pytest.raises(DataError, match="expected NAME=N,C,H,W"):
        parse_input_shapes([spec])


NOTHING = {
    "latency": None, "size": None, "bops": None, "choices": None, "pins": None,
    "free_ends": False, "sensitivity": None,
}  # fmt: skip


def test_without_options_nothing_is_wished():
    assert parse_wishes(**NOTHING) is None
    assert parse_wishes(**{**NOTHING, "pins": []}) is None


@pytest.mark.parametrize(
    "option",
    [
        {"latency": "0.8x"}, {"size": "1MB"}, {"bops": "2G"}, {"choices": "w4a8"},
        {"pins": ["conv=w8a8"]}, {"free_ends": True}, {"sensitivity": "fisher"},
    ],
)  # fmt: skip
def test_any_option_is_a_wish(option):
    assert parse_wishes(**{**NOTHING, **option}) is not None


def test_wishes_are_what_the_options_say():
    wishes = parse_wishes("0.8x", None, "2G", " w4a8, W8A8", ["/a=b/Conv=w4a4"], True, "output")
    assert wishes.budgets == {"latency": "0.8x", "bops": "2G"}
    assert wishes.choices == (W8A8, W4A8)
    assert wishes.pinned == {"/a=b/Conv": W4A4}
    assert not wishes.pin_ends
    assert wishes.sensitivity == "output"
    wishes = parse_wishes(**{**NOTHING, "size": "1MB"})
    assert wishes.choices == DEFAULT_CHOICES
    assert wishes.pin_ends
    assert wishes.sensitivity == "hessian"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"latency": "soon"}, "latency budget 'soon'"),
        ({"latency": ""}, "latency budget ''"),
        ({"size": "0x"}, "size budget '0x'"),
        ({"choices": ""}, "bit choice ''"),
        ({"choices": "w4a8,"}, "bit choice ''"),
        ({"choices": "w0a8"}, "'w0a8': expected weights and activations of 1 to 8 bits"),
        ({"choices": "w8a8g32"}, "w8a8g32"),
        ({"pins": ["conv"]}, "expected LAYER=CHOICE"),
        ({"pins": ["=w8a8"]}, "expected LAYER=CHOICE"),
        ({"pins": ["conv=4"]}, "bit choice '4'"),
        ({"pins": ["conv=w8a8", "conv=w4a8"]}, "layer 'conv' both w8a8 and w4a8"),
        ({"sensitivity": "guess"}, "'guess' is unknown; expected one of hessian"),
        ({"sensitivity": ""}, "'' is unknown"),
        ({"sensitivity": "none-such.json"}, "none-such.json"),
    ],
)
def test_what_is_no_wish(option, message):
    with pytest.raises(TVMQuantError, match=message):
        parse_wishes(**{**NOTHING, **option})


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("90", 90), ("1.5m", 90), ("2h", 7200), (" 5 ", 5)]
)
def test_times(text, seconds):
    assert parse_time("--tune", text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "m", "-5s", "5d", "1e3", "inf"])
def test_what_is_no_time(text):
    with pytest.raises(TuningError, match=f"--tune '{text}' is not understood; .* 90s or 10m"):
        parse_time("--tune", text)
