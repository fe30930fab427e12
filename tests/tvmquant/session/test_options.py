import pytest

from tvmquant.machine import Machine
from tvmquant.session.options import Options


@pytest.mark.parametrize(
    ("target", "bounded"), [("haswell", True), ("znver4", False), ("skylake-avx512", True)]
)
def test_pairs_are_bounded_where_sums_saturate_unless_asked_otherwise(target, bounded):
    machine = Machine.of(target)
    assert Options().rounding(machine) == {"bound_pairs": bounded}
    for portable in (True, False):
        assert Options(bound_pairs=portable).rounding(machine) == {"bound_pairs": portable}
