import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from tvmquant.data import open_data
from tvmquant.errors import DataError


def png(value, size=(4, 6)):
    buffer = io.BytesIO()
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(root, files):
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(params=["folder", "tar"])
def store(request, tmp_path):
    """Return a function that writes files as a folder or as a .tar."""
    if request.param == "folder":
        return lambda files: write_folder(tmp_path / "data", files)
    return lambda files: write_tar(tmp_path / "data.tar", files)


def read(data):
    batches = list(data)
    labels = [labels for _, labels in batches]
    first_pixels = np.concatenate([batch for batch, _ in batches])[:, 0, 0, 0].tolist()
    return first_pixels, None if labels[0] is None else np.concatenate(labels).tolist()


CLASSES = {"dog/b.png": png(3), "cat/z.png": png(2), "cat/a.png": png(1), "emu/x/y.png": png(4)}


def test_class_folders(store):
    data = open_data(store(CLASSES), batch_size=3)
    assert (len(data), data.has_labels) == (4, True)
    assert read(data) == ([1, 2, 3, 4], [0, 0, 1, 2])
    assert next(iter(data))[0].shape == (3, 3, 4, 6)
    assert next(iter(data))[1].dtype == np.int64


def test_class_folders_below_one_common_folder(store):
    assert read(open_data(store({f"top/{k}": v for k, v in CLASSES.items()})))[1] == [0, 0, 1, 2]


def test_a_single_class_folder_is_class_0(store):
    assert read(open_data(store({"cat/a.png": png(1), "cat/b.png": png(2)}))) == ([1, 2], [0, 0])


def test_flat_images_have_no_labels(store):
    data = open_data(store({"b.png": png(2), "a.png": png(1), "notes.txt": b"x", ".a.png": b"x"}))
    assert (read(data), data.has_labels) == (([1, 2], None), False)


@pytest.mark.parametrize("prefix", ["", "top/"])
def test_labels_csv_gives_order_and_labels(store, prefix):
    files = {"b.png": png(2), "sub/a.png": png(1), "unlisted.png": png(9)}
    files["labels.csv"] = b"path,label\r\nb.png,7\n\n./sub/a.png,-1\n"
    files = {prefix + name: data for name, data in files.items()}
    assert read(open_data(store(files))) == ([2, 1], [7, -1])


@pytest.mark.parametrize(
    ("csv", "message"),
    [
        (b"path,label\nmissing.png,1\n", r"labels.csv, line 2: 'missing.png' does not exist"),
        (b"path,label\n../data/a.png,1\n", r"line 2: '../data/a.png' does not exist"),
        (b"path,label\na.png,cat\n", "line 2: label 'cat'"),
        (b"path,label\na.png\n", "line 2: 1 fields"),
        (b"a.png,1\n", "first line.*expected path,label"),
        (b"path,label\n", "lists no images"),
        (b"", "first line"),
        (b"path,label\n\xff\xfe,1\n", "UTF-8"),
    ],
)
def test_bad_labels_csv(store, csv, message):
    with pytest.raises(DataError, match=message):
        open_data(store({"a.png": png(1), "labels.csv": csv}))


def test_images_at_the_top_and_in_folders(store):
    with pytest.raises(DataError, match=r"1 images lie at the top.*'a.png'"):
        open_data(store({"a.png": png(1), "cat/b.png": png(2)}))


@pytest.mark.parametrize("files", [{}, {"readme.txt": b"hello"}])
def test_no_images(tmp_path, files):
    (tmp_path / "data").mkdir()
    for source in (write_folder(tmp_path / "data", files), write_tar(tmp_path / "t.tar", files)):
        with pytest.raises(DataError, match="no images found"):
            open_data(source)


@pytest.mark.parametrize("data", [b"", b"not an image", png(1)[:40], png(1)[:-30]])
def test_undecodable_image_names_the_file(store, data):
    source = store({"cat/a.png": png(1), "cat/broken.png": data})
    with pytest.raises(DataError, match=r"cat/broken.png: cannot be decoded"):
        list(open_data(source))


def test_sixteen_bit_image_is_rejected(store):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 3000, np.uint16)).save(buffer, "PNG")
    with pytest.raises(DataError, match=r"deep.png: .*8-bit"):
        list(open_data(store({"deep.png": buffer.getvalue()})))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_8_bit_mode_becomes_rgb(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new("RGB", (6, 4), "white").convert(mode).save(tmp_path / f"a.{suffix}")
    (batch, _), *_ = open_data(tmp_path)
    assert batch.shape == (1, 3, 4, 6)
    assert (batch >= 254).all()


def test_shape_names_file_found_and_expected(store):
    source = store({"a.png": png(1), "b.png": png(1, (5, 6))})
    with pytest.raises(DataError, match=r"b.png: shape \(3, 5, 6\).*takes \(3, 4, 6\).*'resize'"):
        list(open_data(source, input_shape=(3, 4, 6)))
    with pytest.raises(DataError, match=r"b.png: shape \(3, 5, 6\).*first item has \(3, 4, 6\)"):
        list(open_data(source, input_shape=(3, None, 6)))
    with pytest.raises(DataError, match=r"a.png: shape .*takes \(1, any, 6\)"):
        list(open_data(source, input_shape=(1, None, 6)))


def test_tar_is_never_unpacked_and_odd_members_are_skipped(tmp_path, monkeypatch, caplog):
    path = tmp_path / "odd.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for name in ("../../escape.png", "/absolute.png"):
            member = tarfile.TarInfo(name)
            member.size = len(png(1))
            tar.addfile(member, io.BytesIO(png(1)))
    monkeypatch.setattr(tarfile.TarFile, "extract", None)
    monkeypatch.setattr(tarfile.TarFile, "extractall", None)
    before = sorted(tmp_path.rglob("*"))
    assert sum(len(batch) for batch, _ in open_data(path)) == 2
    assert sorted(tmp_path.rglob("*")) == before
    assert "skipped 1 members" in caplog.text


def test_damaged_tar(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", CLASSES).read_bytes()
    for name, data in {"cut": whole[:700], "text": b"x" * 2000, "empty": b""}.items():
        path = tmp_path / f"{name}.tar"
        path.write_bytes(data)
        with pytest.raises(DataError, match=f"{name}.tar"):
            open_data(path)


def test_archive_that_shrinks_after_opening(tmp_path):
    path = write_tar(tmp_path / "data.tar", CLASSES)
    data = open_data(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match="archive ends inside"):
        list(data)


def test_file_that_vanishes_after_opening(tmp_path):
    data = open_data(write_folder(tmp_path, CLASSES))
    (tmp_path / "cat/a.png").unlink()
    with pytest.raises(DataError, match=r"cat/a.png: cannot be read"):
        list(data)


def test_fingerprint_is_of_the_content(tmp_path):
    folder = open_data(write_folder(tmp_path / "data", CLASSES))
    fingerprint = folder.fingerprint()
    assert open_data(write_tar(tmp_path / "data.tar", CLASSES)).fingerprint() == fingerprint
    assert open_data(tmp_path / "data", batch_size=1).fingerprint() == fingerprint
    assert open_data(tmp_path / "data", "cifar10").fingerprint() != fingerprint
    assert folder.subset(step=2).fingerprint() != fingerprint
    (tmp_path / "data/cat/a.png").write_bytes(png(9))
    assert open_data(tmp_path / "data").fingerprint() != fingerprint


def test_real_imagenet_sample(shared_dir):
    data = open_data(shared_dir / "data/imagenet-1000.tar", "squeezenet-caffe", batch_size=50)
    assert len(data) == 1000
    calibration, evaluation = data.subset(step=10), data.subset(step=10, exclude=True)
    assert (len(calibration), len(evaluation)) == (100, 900)
    labels = []
    for batch, batch_labels in calibration:
        assert batch.shape == (50, 3, 227, 227)
        assert -124 < batch.min() < batch.max() < 152
        labels.extend(batch_labels)
    assert labels == list(range(0, 1000, 10))


def test_real_cifar10(shared_dir):
    data = open_data(
        shared_dir / "data/cifar10-test.tar", "cifar10", input_shape=(3, 32, 32), batch_size=100
    )
    assert len(data) == 10_000
    labels = np.concatenate([labels for _, labels in data.subset(step=20)])
    np.testing.assert_array_equal(np.bincount(labels), np.full(10, 50))
