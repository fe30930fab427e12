import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvmquant.data import Subset, open_data
from tvmquant.errors import DataError

ROWS = np.arange(30, dtype=np.float32).reshape(30, 1)


def ids(data):
    return np.concatenate([batch for batch, _ in data])[:, 0].astype(int).tolist()


@given(st.integers(2, 12), st.data())
def test_a_subset_and_its_complement_partition_the_data(step, draw):
    offset = draw.draw(st.integers(0, step - 1))
    data = open_data(ROWS)
    chosen = ids(data.subset(step=step, offset=offset))
    others = ids(data.subset(step=step, offset=offset, exclude=True))
    assert chosen == list(range(offset, 30, step))
    assert sorted(chosen + others) == list(range(30))


def test_subsets_compose():
    data = open_data(ROWS).subset(step=3).subset(step=2, offset=1)
    assert ids(data) == [3, 9, 15, 21, 27]
    assert ids(data.subset(limit=2)) == [3, 9]
    assert len(data.subset(limit=2)) == 2


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (None, list(range(30))),
        ("step=10", [0, 10, 20]),
        ("step=10, offset=3, limit=2", [3, 13]),
        ("step=2,exclude,limit=3", [1, 3, 5]),
        ({"limit": 2}, [0, 1]),
        (Subset(step=15, offset=14), [14, 29]),
    ],
)
def test_select(select, expected):
    data = open_data(ROWS, select=select)
    assert ids(data) == expected
    assert len(data) == len(expected)


@pytest.mark.parametrize(
    "select",
    ["step=0", "step=x", "every=3", "step=3,offset=3", "exclude", "limit=0", "10", {"step": 1.5}],
)
def test_bad_select(select):
    with pytest.raises(DataError, match="subset"):
        open_data(ROWS, select=select)


def test_selection_that_holds_nothing():
    with pytest.raises(DataError, match="none of its 30 items"):
        open_data(ROWS, select="step=50,offset=40")
    with pytest.raises(DataError, match="holds no item"):
        list(open_data(iter(ROWS), select="step=50,offset=40"))


def test_batches_are_fresh_and_order_is_stable():
    data = open_data(ROWS, batch_size=8)
    first, second = list(data), list(data)
    assert [len(batch) for batch, _ in first] == [8, 8, 8, 6]
    for (a, _), (b, _) in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
        a[:] = -1
    assert ROWS.min() == 0


@pytest.mark.parametrize("batch_size", [0, -1, 2.5])
def test_bad_batch_size(batch_size):
    with pytest.raises(DataError, match="batch_size"):
        open_data(ROWS, batch_size=batch_size)


def test_unknown_sources(tmp_path):
    (tmp_path / "data.csv").write_text("1")
    for source, message in (
        (tmp_path / "missing", "does not exist"),
        (tmp_path / "data.csv", "unknown kind"),
        (3, "type int"),
        (b"abc", "type bytes"),
        (None, "type NoneType"),
    ):
        with pytest.raises(DataError, match=message):
            open_data(source)


def test_shape_of_float_items():
    with pytest.raises(DataError, match=r"array\[0\]: shape \(1,\).*takes \(3, 4\)$"):
        list(open_data(ROWS, input_shape=(3, 4)))
