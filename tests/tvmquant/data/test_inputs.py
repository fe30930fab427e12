"""Data of networks with several inputs, with integer inputs, and from what others' tools take."""

import numpy as np
import pytest
import torch
from PIL import Image

from tvmquant.data import InputSpec, arrays_of, open_data
from tvmquant.errors import DataError

A = np.arange(5 * 2 * 3, dtype=np.float32).reshape(5, 2, 3)
B = np.arange(5 * 4, dtype=np.float32).reshape(5, 4)
LABELS = np.array([4, 3, 2, 1, 0])
TWO = (InputSpec("a", (2, 3)), InputSpec("b", (4,)))
ONE = (InputSpec("a", (2, 3)),)


class Reader:
    """As ONNX Runtime asks for it."""

    def __init__(self, *batches):
        self.batches = iter(batches)

    def get_next(self):
        return next(self.batches, None)


class RewindingReader(Reader):
    def __init__(self, *batches):
        super().__init__(*batches)
        self.all = batches

    def rewind(self):
        self.batches = iter(self.all)


def read(source, inputs=TWO, **options):
    batches = list(open_data(source, inputs=inputs, batch_size=2, **options))
    arrays = zip(*(arrays_of(batch) for batch, _ in batches), strict=True)
    labels = None if batches[0][1] is None else np.concatenate([labels for _, labels in batches])
    return [np.concatenate(each) for each in arrays], labels


def rows_of_both():
    return [{"a": a, "b": b} for a, b in zip(A, B, strict=True)]


@pytest.mark.parametrize(
    "source",
    [
        {"a": A, "b": B},
        (A, B),
        [A, B],
        rows_of_both(),
        [(a, b) for a, b in zip(A, B, strict=True)],
        [{"b": B[:3], "a": A[:3]}, {"a": A[3:], "b": B[3:]}],
        [{"a": torch.from_numpy(A), "b": torch.from_numpy(B)}],
        torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.from_numpy(A), torch.from_numpy(B)), batch_size=3
        ),
    ],
    ids=lambda source: type(source).__name__,
)
def test_several_inputs(source):
    (a, b), labels = read(source)
    np.testing.assert_array_equal(a, A)
    np.testing.assert_array_equal(b, B)
    assert labels is None


@pytest.mark.parametrize(
    "source",
    [
        {"a": A, "b": B, "labels": LABELS},
        (A, B, LABELS),
        [({"a": A, "b": B}, LABELS)],
        [((A[:2], B[:2]), LABELS[:2]), ((A[2:], B[2:]), LABELS[2:])],
        [(a, b, label) for a, b, label in zip(A, B, LABELS, strict=True)],
        [{"a": A, "b": B, "y": LABELS}],
    ],
)
def test_labels_of_several_inputs(source):
    (a, b), labels = read(source)
    np.testing.assert_array_equal(a, A)
    np.testing.assert_array_equal(b, B)
    np.testing.assert_array_equal(labels, LABELS)


def test_inputs_by_name_in_an_npz(tmp_path):
    np.savez(tmp_path / "x.npz", b=B, other=A, a=np.asfortranarray(A), labels=LABELS)
    (a, b), labels = read(tmp_path / "x.npz")
    np.testing.assert_array_equal(a, A)
    np.testing.assert_array_equal(b, B)
    np.testing.assert_array_equal(labels, LABELS)
    np.savez(tmp_path / "lacking.npz", a=A, c=B)
    with pytest.raises(DataError, match="holds a, c and lacks b; the model takes 'a', 'b'"):
        open_data(tmp_path / "lacking.npz", inputs=TWO)
    np.savez(tmp_path / "ragged.npz", a=A, b=B[:3])
    with pytest.raises(DataError, match="5 of 'a', 3 of 'b'"):
        open_data(tmp_path / "ragged.npz", inputs=TWO)
    np.save(tmp_path / "x.npy", A)
    with pytest.raises(DataError, match="one array, but the model has 2 inputs"):
        open_data(tmp_path / "x.npy", inputs=TWO)
    np.savez(tmp_path / "others.npz", b=A, c=A)
    with pytest.raises(DataError, match="holds b, c; store the model's input as 'a', or under"):
        open_data(tmp_path / "others.npz", inputs=ONE)
    # of one input the array of its name, whatever comes first
    np.savez(tmp_path / "one.npz", x=B, a=A)
    np.testing.assert_array_equal(read(tmp_path / "one.npz", ONE)[0][0], A)


def test_a_calibration_data_reader():
    batches = [{"a": A[i : i + 1], "b": B[i : i + 1]} for i in range(5)]
    (a, b), _ = read(Reader(*batches))
    np.testing.assert_array_equal(a, A)
    np.testing.assert_array_equal(b, B)
    rewinding = open_data(RewindingReader(*batches), inputs=TWO)
    assert rewinding.fingerprint() == rewinding.fingerprint() is not None
    once = open_data(Reader(*batches), inputs=TWO)
    assert once.fingerprint() is None
    assert sum(len(batch[0]) for batch, _ in once) == 5
    with pytest.raises(DataError, match="only once"):
        list(once)


def test_a_reader_of_one_input_may_hand_over_arrays():
    np.testing.assert_array_equal(read(Reader(A[:3], A[3:]), ONE)[0][0], A)


class Numbered(torch.utils.data.Dataset):
    """Items by their number; torch's own data sets do not say where they end either."""

    def __len__(self):
        return len(A)

    def __getitem__(self, index):
        return {"a": A[index % len(A)], "label": int(LABELS[index % len(A)])}


@pytest.mark.parametrize(
    "source",
    [Numbered(), torch.utils.data.TensorDataset(torch.from_numpy(A), torch.from_numpy(LABELS))],
    ids=lambda source: type(source).__name__,
)
def test_data_sets_of_torch(source):
    (a,), labels = read(source, ONE)
    np.testing.assert_array_equal(a, A)
    np.testing.assert_array_equal(labels, LABELS)
    data = open_data(source, inputs=ONE)
    assert data.fingerprint() == data.fingerprint() is not None


def test_tensors_of_torch_that_numpy_does_not_read():
    for tensor in (torch.from_numpy(A).requires_grad_(), torch.from_numpy(A).bfloat16()):
        for source in (tensor, {"a": tensor}, [(tensor, LABELS)]):
            np.testing.assert_array_equal(read(source, ONE)[0][0], A)


def test_one_input_with_labels():
    for source in ((A, LABELS), {"a": A, "label": LABELS}, [(A, LABELS)], [{"a": A, "y": LABELS}]):
        (a,), labels = read(source, ONE)
        np.testing.assert_array_equal(a, A)
        np.testing.assert_array_equal(labels, LABELS)
    (a,), labels = read([(torch.from_numpy(A),)], ONE)
    np.testing.assert_array_equal(a, A)
    assert labels is None


def test_lists_of_batches():
    np.testing.assert_array_equal(read([A[:4], A[4:]], ONE)[0][0], A)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (A, "one array, but the model has 2 inputs"),
        ({"a": A, "c": B}, "holds 'a', 'c'; the model takes 'a', 'b'"),
        ([{"a": A[0]}], "item 0: holds 'a'; the model takes 'a', 'b'"),
        ([A[0]], "found ndarray, but the model has 2 inputs"),
        ([(A[0], B[0], 1, 2)], "found tuple of 4"),
        ([{"a": A, "b": B[0]}], "'a' .5, 2, 3., 'b' .4,.; expected one item, or equally many"),
        ([{"a": A[0], "b": B[0, :3]}], "input 'b': shape .3,., but the model's input 'b' takes"),
        ([{"a": A[0], "b": B[0].astype(int)}], "input 'b': dtype int64 is not supported"),
        ([*rows_of_both(), {"a": A[0], "b": B[0, :2]}], "item 5, input 'b': shape .2,."),
        ([{"a": A[:0], "b": B[:0]}], "element 0, input 'a': empty array of shape"),
        ({"a": [A[0], A[0, :1]], "b": B}, "mapping of arrays, input 'a': list is no array"),
    ],
)
def test_what_is_wrong_is_named(source, message):
    with pytest.raises(DataError, match=message):
        list(open_data(source, inputs=TWO))


def test_integers_reach_integer_inputs_as_they_are():
    tokens = np.array([[1, 2], [300, -1]])
    (found,), _ = read(tokens, (InputSpec("ids", (2,), "int32"),))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, tokens)
    (mask,), _ = read(tokens > 1, (InputSpec("mask", (2,), "bool"),))
    assert mask.dtype == np.bool_
    with pytest.raises(DataError, match="from -1 to 300, but the model's input 'ids' takes uint8"):
        read(tokens, (InputSpec("ids", (2,), "uint8"),))
    with pytest.raises(DataError, match="dtype float64, but the model's input 'ids' takes int32"):
        read(tokens / 2, (InputSpec("ids", (2,), "int32"),))


def test_images_reach_integer_inputs_as_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    planes, rows = InputSpec("x", (3, 6, 4), "uint8"), InputSpec("x", (6, 4, 3), "uint8")
    (found,), _ = read(tmp_path, (planes,))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0], pixels.transpose(2, 0, 1))
    (found,), _ = read(tmp_path, (rows,), preprocess={"layout": "NHWC"})
    np.testing.assert_array_equal(found[0], pixels)
    (found,), _ = read(pixels[None], (rows,))
    np.testing.assert_array_equal(found[0], pixels)
    (found,), _ = read(pixels[None], (planes,), preprocess={"color": "BGR"})
    np.testing.assert_array_equal(found[0], pixels[:, :, ::-1].transpose(2, 0, 1))
    with pytest.raises(DataError, match=r"recipe normalizes .* takes uint8: it normalizes"):
        read(tmp_path, (planes,), preprocess={"scale": 1 / 255})
