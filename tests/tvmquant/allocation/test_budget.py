import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmquant.allocation import Budget
from tvmquant.allocation.budget import UNITS, format_amount
from tvmquant.errors import AllocationError


@pytest.mark.parametrize(
    ("text", "quantity", "value", "relative"),
    [
        ("0.8x", "latency", 0.8, True), ("12ms", "latency", 12.0, False),
        ("12.5 ms", "latency", 12.5, False), ("800 us", "latency", 0.8, False),
        ("800\N{MICRO SIGN}s", "latency", 0.8, False), ("1.5s", "latency", 1500.0, False),
        ("1.2MB", "size", 1.2e6, False), ("900kB", "size", 9e5, False),
        ("2MiB", "size", 2.0**21, False), ("1.5mib", "size", 1.5 * 2**20, False),
        ("300000", "size", 3e5, False), ("3e5", "size", 3e5, False),
        ("2.5G", "bops", 2.5e9, False), ("3T", "bops", 3e12, False), (".5X", "bops", 0.5, True),
    ],
)  # fmt: skip
def test_budgets_as_users_write_them(text, quantity, value, relative):
    assert Budget.parse(text, quantity) == Budget(quantity, pytest.approx(value), relative)


@pytest.mark.parametrize("quantity", UNITS)
@pytest.mark.parametrize(
    "text", ["", "x", "lots", "-1", "0x", "nan", "inf", "1e999", "1,5MB", "1x1", "0.8 x y", "80%"]
)
def test_what_is_no_budget(text, quantity):
    with pytest.raises(AllocationError, match=f"{quantity} budget .* is not understood; expected"):
        Budget.parse(text, quantity)


@pytest.mark.parametrize(
    ("text", "quantity"), [("3MB", "latency"), ("12ms", "size"), ("1MiB", "bops"), ("8", "latency")]
)
def test_units_of_other_quantities(text, quantity):
    with pytest.raises(AllocationError, match="is not understood"):
        Budget.parse(text, quantity)


def test_relative_budgets_are_of_the_reference():
    assert Budget.parse("0.5x", "size").limit(3000.0) == 1500.0
    assert Budget.parse("1kB", "size").limit(3000.0) == 1000.0


@given(st.sampled_from(sorted(UNITS)), st.floats(1e-2, 1e13))
def test_amounts_are_written_as_they_are_read(quantity, value):
    written = format_amount(quantity, value)
    assert Budget.parse(written, quantity).value == pytest.approx(value, rel=1e-3)
