"""Image files in a folder or in a .tar, labelled by labels.csv, by class folder, or not at all."""

from __future__ import annotations

import csv
import io
import logging
import os
import posixpath
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from tvmquant.data.items import Item, Source
from tvmquant.errors import DataError

logger = logging.getLogger(__name__)

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
# Formats that Pillow may try: a file from elsewhere must not reach its rarely used decoders.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
_LABELS = "labels.csv"


class ImageSource(Source):
    """The images of a folder or an uncompressed .tar; nothing is ever extracted to disk.

    Order and labels come from ``labels.csv`` at the top (columns ``path,label``) where it exists.
    Otherwise the order is that of the sorted paths, and the label is the index of the image's
    top-level folder among the sorted folder names; images that lie directly at the top have no
    labels. One folder that holds everything else (``cifar/airplane/0.jpg``) is looked through.
    Hidden files and files that are no images are ignored. EXIF orientation is not applied, as in
    the usual training pipelines.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._files: _Files = _Folder(path) if path.is_dir() else _Tar(path)
        prefix = _common_folder(self._files.names)
        csv_name = prefix + _LABELS
        if csv_name in self._files:
            rows = _read_labels(self._files, csv_name, self.name)
            self._paths = [prefix + path for path, _ in rows]
            self._labels: Sequence[int] | None = [label for _, label in rows]
        else:
            self._paths = sorted(name for name in self._files.names if _is_image(name))
            self._labels = _folder_labels([p[len(prefix) :] for p in self._paths], self.name)
        if not self._paths:
            raise DataError(
                f"{self.name}: no images found; expected files ending in {', '.join(_SUFFIXES)}"
            )
        self.length = len(self._paths)
        self.has_labels = self._labels is not None

    def read(self, positions: Iterator[int]) -> Iterator[Item]:
        """Decode the images at `positions`."""
        for position in positions:
            name = self._files.describe(self._paths[position])
            data = self._files.read(self._paths[position])
            yield Item(name, (_decode(data, name),), self._label(position))

    def content(self, positions: Iterator[int]) -> Iterator[tuple[bytes, int | None]]:
        """Yield the encoded files, so that a fingerprint decodes nothing."""
        for position in positions:
            yield self._files.read(self._paths[position]), self._label(position)

    def _label(self, position: int) -> int | None:
        return None if self._labels is None else self._labels[position]


class _Files(ABC):
    """Files by their path relative to the top, with forward slashes."""

    names: list[str]

    @abstractmethod
    def __contains__(self, name: object) -> bool: ...

    @abstractmethod
    def describe(self, name: str) -> str:
        """Return what messages call the file."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return the file's bytes."""


class _Folder(_Files):
    def __init__(self, root: Path) -> None:
        self._root = root
        self.names = []
        for folder, _, files in os.walk(root):
            relative = Path(folder).relative_to(root).as_posix()
            self.names += [posixpath.normpath(posixpath.join(relative, file)) for file in files]
        self.names = [name for name in self.names if not _is_hidden(name)]
        self._known = frozenset(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def describe(self, name: str) -> str:
        return str(self._root / name)

    def read(self, name: str) -> bytes:
        try:
            return (self._root / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self.describe(name)}: cannot be read: {error}") from error


class _Tar(_Files):
    """Members are read by offset and size: the archive is walked once and never unpacked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._extents: dict[str, tuple[int, int]] = {}
        skipped = 0
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    # As if the archive were the whole file system: no leading / or .. is left.
                    name = posixpath.normpath(f"/{member.name.lstrip('/')}")[1:]
                    if member.isreg() and not member.issparse() and not _is_hidden(name):
                        self._extents[name] = (member.offset_data, member.size)
                    elif not member.isdir() and not _is_hidden(name):
                        skipped += 1
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            raise DataError(
                f"{path}: not a complete, uncompressed .tar archive: {error}. "
                "Decompress a .tar.gz first, or copy the file again"
            ) from error
        if skipped:
            logger.warning("%s: skipped %d members that are links or special files", path, skipped)
        self.names = list(self._extents)

    def __contains__(self, name: object) -> bool:
        return name in self._extents

    def describe(self, name: str) -> str:
        return f"{self._path}:{name}"

    def read(self, name: str) -> bytes:
        offset, size = self._extents[name]
        try:
            with self._path.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise DataError(f"{self.describe(name)}: cannot be read: {error}") from error
        if len(data) != size:
            raise DataError(f"{self.describe(name)}: the archive ends inside this member")
        return data


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _is_image(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES)


def _common_folder(names: list[str]) -> str:
    """Return the folders ("a/b/") above the one that holds labels.csv or the class folders."""
    prefix = ""
    images = [name for name in names if _is_image(name)]
    while prefix + _LABELS not in names:
        tops = {name[len(prefix) :].partition("/")[0] for name in images}
        deep = all(name.count("/", len(prefix)) >= 2 for name in images)
        below = prefix + next(iter(tops), "") + "/"
        if len(tops) != 1 or not (deep or below + _LABELS in names):
            break
        prefix = below
    return prefix


def _folder_labels(paths: list[str], name: str) -> list[int] | None:
    folders = [path.rpartition("/")[0].partition("/")[0] for path in paths]
    if not any(folders):
        return None
    if not all(folders):
        raise DataError(
            f"{name}: {folders.count('')} images lie at the top and the others in class folders "
            f"(for instance {paths[folders.index('')]!r} and {max(folders)!r}); move them, or add "
            f"a {_LABELS} with the columns path,label"
        )
    classes = {folder: index for index, folder in enumerate(sorted(set(folders)))}
    return [classes[folder] for folder in folders]


def _read_labels(files: _Files, csv_name: str, name: str) -> list[tuple[str, int]]:
    where = files.describe(csv_name)
    prefix = csv_name[: -len(_LABELS)]
    rows: list[tuple[str, int]] = []
    try:
        reader = csv.reader(io.StringIO(files.read(csv_name).decode("utf-8-sig")), strict=True)
        header = [field.strip() for field in next(reader, [])]
        if header != ["path", "label"]:
            raise DataError(f"{where}: the first line is {header}; expected path,label")
        for row in reader:
            if not row:
                continue
            if len(row) != 2:
                raise DataError(
                    f"{where}, line {reader.line_num}: {len(row)} fields; expected path,label"
                )
            path = posixpath.normpath(row[0].strip())
            if prefix + path not in files:
                raise DataError(
                    f"{where}, line {reader.line_num}: {row[0]!r} does not exist in {name}"
                )
            try:
                rows.append((path, int(row[1])))
            except ValueError:
                raise DataError(
                    f"{where}, line {reader.line_num}: label {row[1]!r} is not an integer"
                ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{where}: not a UTF-8 CSV file: {error}") from error
    if not rows:
        raise DataError(f"{where}: lists no images")
    return rows


def _decode(data: bytes, name: str) -> Image.Image:
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
        image.load()
        if image.mode == "P":
            image = image.convert("RGBA")
    except UnidentifiedImageError:
        raise DataError(
            f"{name}: cannot be decoded as an image; expected one of {', '.join(_FORMATS)}"
        ) from None
    except Exception as error:
        # A damaged file makes Pillow's decoders raise almost anything, SyntaxError included.
        raise DataError(f"{name}: cannot be decoded as an image: {error}") from error
    if image.mode[0] in "IF":
        raise DataError(
            f"{name}: pixels have mode {image.mode} (16-bit or float); save it as an 8-bit image"
        )
    return image
