import zipfile

import numpy as np
import pytest

from tvmquant.data import open_data
from tvmquant.errors import DataError

ROWS = np.random.default_rng(0).standard_normal((7, 3, 4, 5)).astype(np.float32)
LABELS = np.arange(7)[::-1]


def read(data):
    batches = list(data)
    labels = [labels for _, labels in batches]
    joined = np.concatenate([batch for batch, _ in batches])
    return joined, None if labels[0] is None else np.concatenate(labels)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["npy", "npz", "npz-compressed", "memory"])
def test_every_way_to_give_an_array(tmp_path, dtype, order, kind):
    array = np.asarray(ROWS, dtype, order=order)
    source, labels = tmp_path / "rows.npz", None
    if kind == "memory":
        source = array
    elif kind == "npy":
        source = tmp_path / "rows.npy"
        np.save(source, array)
    else:
        save = np.savez if kind == "npz" else np.savez_compressed
        save(source, labels=LABELS.astype(np.uint8), other=ROWS[:2], images=array)
        labels = LABELS
    data = open_data(source, batch_size=3)
    for _ in range(2):
        found, found_labels = read(data)
        np.testing.assert_array_equal(found, array.astype(np.float32))
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found_labels, labels)
    np.testing.assert_array_equal(read(data.subset(step=3, offset=1))[0], found[[1, 4]])
    assert (len(data), data.has_labels) == (7, labels is not None)


@pytest.mark.parametrize(
    ("names", "expected"),
    [(("a", "x", "y"), "x"), (("b",), "b"), (("y", "z"), "z"), (("x", "images"), "images")],
)
def test_names_in_npz(tmp_path, names, expected):
    arrays = {name: ROWS + index for index, name in enumerate(names)}
    if "y" in arrays:
        arrays["y"] = LABELS
    np.savez(tmp_path / "rows.npz", **arrays)
    found, labels = read(open_data(tmp_path / "rows.npz"))
    np.testing.assert_array_equal(found, arrays[expected])
    assert (labels is None) == ("y" not in names)


def test_uint8_goes_through_the_recipe_and_floats_do_not():
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    found, _ = read(open_data(pixels, '{"scale": 0.5, "crop": 2}'))
    np.testing.assert_array_equal(found, pixels[:, 1:3, 1:3].transpose(0, 3, 1, 2) * 0.5)
    found, _ = read(open_data(ROWS, '{"scale": 0.5, "crop": 2}'))
    np.testing.assert_array_equal(found, ROWS)


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.bool_, np.complex64, np.longdouble, "U3"])
def test_wrong_dtype(tmp_path, dtype):
    path = tmp_path / "rows.npy"
    np.save(path, np.zeros((2, 3), dtype))
    for source in (path, np.zeros((2, 3), dtype), [np.zeros(3, dtype)]):
        with pytest.raises(DataError, match="dtype"):
            open_data(source)


def test_object_arrays_are_never_unpickled(tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, np.array([[1, "x"]], object), allow_pickle=True)
    with pytest.raises(DataError, match=r"rows.npy: dtype object"):
        open_data(path)
    np.savez(tmp_path / "rows.npz", x=ROWS, y=np.array([None] * 7))
    with pytest.raises(DataError, match=r"rows.npz: .*pickle"):
        open_data(tmp_path / "rows.npz")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_nonfinite_names_the_item(tmp_path, bad):
    rows = ROWS.astype(np.float64)
    rows[5, 2, 1, 0] = bad
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(DataError, match=r"rows.npy\[5\]: holds NaN or Inf"):
        list(open_data(tmp_path / "rows.npy"))


@pytest.mark.parametrize("shape", [(0, 3), (3,), (), (2, 0)])
def test_empty_and_flat_arrays(tmp_path, shape):
    np.save(tmp_path / "rows.npy", np.zeros(shape, np.float32))
    for source in (tmp_path / "rows.npy", np.zeros(shape, np.float32)):
        with pytest.raises(DataError, match="at least one item"):
            open_data(source)


@pytest.mark.parametrize("cut", [0, 5, 60, 200])
def test_truncated_files(tmp_path, cut):
    for name, save in (("rows.npy", np.save), ("rows.npz", np.savez)):
        save(tmp_path / name, ROWS)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:cut])
        with pytest.raises(DataError, match=name):
            open_data(tmp_path / name)


def test_damaged_compressed_rows_are_reported_while_reading(tmp_path):
    path = tmp_path / "rows.npz"
    np.savez_compressed(path, x=np.random.default_rng(1).standard_normal((50, 1000)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"rows.npz"):
        list(open_data(path))


def test_npz_without_arrays(tmp_path):
    with zipfile.ZipFile(tmp_path / "rows.npz", "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(DataError, match="no array of inputs"):
        open_data(tmp_path / "rows.npz")


@pytest.mark.parametrize(
    "labels", [np.arange(6), np.eye(7, dtype=int), np.arange(7.0), np.array(3)]
)
def test_bad_labels(tmp_path, labels):
    np.savez(tmp_path / "rows.npz", x=ROWS, y=labels)
    with pytest.raises(DataError, match=r"rows.npz: labels"):
        open_data(tmp_path / "rows.npz")


class Loader:
    """Starts afresh at every iteration, like a torch DataLoader."""

    def __init__(self, elements):
        self.elements = elements

    def __iter__(self):
        return iter(self.elements)


@pytest.mark.parametrize("wrap", [list, tuple, Loader, iter])
def test_iterables(wrap):
    data = open_data(wrap([(row, label) for row, label in zip(ROWS, LABELS, strict=True)]))
    found, labels = read(data.subset(step=3))
    np.testing.assert_array_equal(found, ROWS[::3])
    np.testing.assert_array_equal(labels, LABELS[::3])
    found, labels = read(open_data(wrap(list(ROWS)), batch_size=2))
    np.testing.assert_array_equal(found, ROWS)
    assert labels is None


def test_length_of_iterables():
    assert len(open_data(list(ROWS))) == 7
    data = open_data(Loader(ROWS))
    assert not data.has_length
    with pytest.raises(TypeError, match="not known"):
        len(data)
    assert sum(len(batch) for batch in next(zip(*data, strict=True))) == 7


def test_batches_of_a_loader_are_split():
    batches = Loader([[ROWS[:4], LABELS[:4]], [ROWS[4:], LABELS[4:]]])
    found, labels = read(open_data(batches, input_shape=(3, None, None), batch_size=5))
    np.testing.assert_array_equal(found, ROWS)
    np.testing.assert_array_equal(labels, LABELS)
    with pytest.raises(DataError, match="labels have shape"):
        list(open_data([(ROWS, 3)], input_shape=(3, 4, 5)))


def test_generator_can_be_read_once():
    data = open_data(row for row in ROWS)
    assert data.fingerprint() is None
    assert len(read(data)[0]) == 7
    for again in (data, data.subset(step=2)):
        with pytest.raises(DataError, match="only once"):
            next(iter(again))


def test_generator_is_not_read_further_than_needed():
    def endless():
        while True:
            yield np.zeros(3, np.float32)

    data = open_data(endless(), batch_size=4).subset(step=5, limit=10)
    assert [len(batch) for batch, _ in data] == [4, 4, 2]


def test_fingerprint_of_iterables_equals_that_of_the_array():
    assert open_data(Loader(ROWS)).fingerprint() == open_data(ROWS).fingerprint()
    assert open_data(ROWS).fingerprint() != open_data(ROWS * 2).fingerprint()
    assert open_data(ROWS).fingerprint() != open_data(ROWS.reshape(7, 60)).fingerprint()


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ([], "yields nothing"),
        ([ROWS[0], (ROWS[1], 2)], "has a label, unlike"),
        ([(ROWS[0], 2), ROWS[1]], "lacks a label"),
        ([(ROWS[0], 2.5)], "labels have dtype float64"),
        ([ROWS[0], ROWS[1, 1]], r"item 1: shape \(4, 5\).*first item has \(3, 4, 5\)"),
        (["text"], "dtype <U4"),
        ([np.zeros((0, 3), np.float32)], r"empty array of shape \(0, 3\)"),
        ([ROWS[0] * np.float32("nan")], "item 0: holds NaN"),
    ],
)
def test_bad_elements(elements, message):
    with pytest.raises(DataError, match=message):
        list(open_data(Loader(elements)))
