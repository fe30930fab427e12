import pytest

from tvmquant.cli.options import parse_input_shapes
from tvmquant.errors import DataError


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
