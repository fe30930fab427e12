"""Arrays in memory, in .npy and .npz files, and Python iterables of arrays."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tvmquant.data.items import Item, Source, check_dtype, integer_labels
from tvmquant.errors import DataError


class ArraySource(Source):
    """The rows of an array (N, ...) in memory."""

    def __init__(
        self, array: NDArray[Any], name: str, labels: NDArray[np.int64] | None = None
    ) -> None:
        _check_array(array.dtype, array.shape, name)
        self.name = name
        self.length = len(array)
        self.has_labels = labels is not None
        self._array = array
        self._labels = labels

    def read(self, positions: Iterator[int]) -> Iterator[Item]:
        """Yield views of the rows."""
        for position in positions:
            label = None if self._labels is None else int(self._labels[position])
            yield Item(f"{self.name}[{position}]", self._array[position], label)


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    offset: int


class NumpyFileSource(Source):
    """The rows of a .npy file, or of one array of an .npz, read one at a time.

    An .npz holds the rows under ``images``, ``x``, or else its first array, and labels under
    ``labels`` or ``y``. Files in Fortran order are read whole.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._member: str | None = None
        self._labels: NDArray[np.int64] | None = None
        labels_member = None
        try:
            if path.suffix.lower() == ".npz":
                self._member, labels_member = _choose_members(path)
            with ExitStack() as stack:
                file, size = self._open(stack, self._member)
                self._header = header = _read_header(file, self.name)
            _check_array(header.dtype, header.shape, self.name)
            row_size = header.dtype.itemsize * int(np.prod(header.shape[1:], dtype=object))
            if header.offset + header.shape[0] * row_size > size:
                raise DataError(
                    f"{self.name}: truncated: the header promises {header.shape} {header.dtype}, "
                    f"the file has only {size - header.offset} bytes of data"
                )
            if labels_member is not None:
                with np.load(path, allow_pickle=False) as archive:
                    labels = archive[labels_member.removesuffix(".npy")]
                self._labels = integer_labels(labels, header.shape[0], self.name)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{self.name}: cannot be read as a NumPy file: {error}") from error
        self._row_size = row_size
        self.length = header.shape[0]
        self.has_labels = self._labels is not None

    def read(self, positions: Iterator[int]) -> Iterator[Item]:
        """Read the rows by their position in the file."""
        if self._header.fortran_order:
            yield from self._whole().read(positions)
            return
        header = self._header
        with ExitStack() as stack:
            file, _ = self._open(stack, self._member)
            for position in positions:
                name = f"{self.name}[{position}]"
                try:
                    file.seek(header.offset + position * self._row_size)
                    data = file.read(self._row_size)
                    row = np.frombuffer(data, header.dtype).reshape(header.shape[1:])
                except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                    raise DataError(f"{name}: cannot be read: {error}") from error
                label = None if self._labels is None else int(self._labels[position])
                yield Item(name, row, label)

    def _open(self, stack: ExitStack, member: str | None) -> tuple[IO[bytes], int]:
        if member is None:
            return stack.enter_context(self._path.open("rb")), self._path.stat().st_size
        archive = stack.enter_context(zipfile.ZipFile(self._path))
        return stack.enter_context(archive.open(member)), archive.getinfo(member).file_size

    def _whole(self) -> ArraySource:
        loaded = np.load(self._path, allow_pickle=False)
        if self._member is not None:
            with loaded:
                loaded = loaded[self._member.removesuffix(".npy")]
        return ArraySource(loaded, self.name, self._labels)


class IterableSource(Source):
    """Arrays, or (array, label) pairs, from a Python iterable.

    An element with one axis more than an item is a batch, and its label is then an array with one
    label per row: what a torch DataLoader yields is accepted as it is. The rank of an item is that
    of the network's input, and 3 for uint8 images.

    Parameters
    ----------
    iterable : iterable
        A generator can be read once; a second pass raises `DataError`.
    item_rank : int, optional
        Rank of a float item. Default: float elements are never batches.
    """

    def __init__(self, iterable: Iterable[Any], item_rank: int | None) -> None:
        self.name = f"iterable of type {type(iterable).__name__}"
        self._item_rank = item_rank
        self._iterable = iterable
        self._consumed = False
        iterator = iter(iterable)
        self.reiterable = iterator is not iterable
        try:
            first = next(iterator)
        except StopIteration:
            raise DataError(f"{self.name}: yields nothing; expected arrays") from None
        self.has_labels = _split_pair(first)[1] is not None
        self._pending = () if self.reiterable else (first,)
        self.length = None
        if isinstance(iterable, (list, tuple)):
            self.length = sum(len(self._rows(element, "element")[0]) for element in iterable)

    def read(self, positions: Iterator[int]) -> Iterator[Item]:
        """Pass through the iterable, keeping the items at `positions`."""
        if self._consumed:
            raise DataError(
                f"{self.name}: can be iterated only once, and already was; pass a list or "
                "an object whose __iter__ starts afresh"
            )
        self._consumed = not self.reiterable
        wanted = next(positions, None)
        for position, item in enumerate(self._items()):
            if position == wanted:
                yield item
                wanted = next(positions, None)
            if wanted is None:
                return

    def _items(self) -> Iterator[Item]:
        position = 0
        for elements in (self._pending, self._iterable):
            for element in elements:
                name = f"{self.name}, item {position}"
                values, labels = self._rows(element, name)
                for row, value in enumerate(values):
                    label = None if labels is None else int(labels[row])
                    yield Item(f"{self.name}, item {position}", value, label)
                    position += 1
            self._pending = ()

    def _rows(self, element: Any, name: str) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        value, label = _split_pair(element)
        if (label is not None) != self.has_labels:
            raise DataError(
                f"{name}: {'has' if label is not None else 'lacks'} a label, unlike the first "
                "item; yield either arrays only, or (array, label) pairs only"
            )
        try:
            array = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{name}: {type(value).__name__} is no array: {error}") from error
        check_dtype(array.dtype, name)
        item_rank = 3 if array.dtype == np.uint8 else self._item_rank
        is_batch = item_rank is not None and array.ndim == item_rank + 1
        rows = array if is_batch else array[None]
        if label is None:
            return rows, None
        labels = np.asarray(label)
        return rows, integer_labels(labels if is_batch else labels.reshape(-1), len(rows), name)


def _split_pair(element: Any) -> tuple[Any, Any]:
    if isinstance(element, (tuple, list)) and len(element) == 2:
        return element[0], element[1]
    return element, None


def _check_array(dtype: np.dtype[Any], shape: tuple[int, ...], name: str) -> None:
    check_dtype(dtype, name)
    if len(shape) < 2 or 0 in shape:
        raise DataError(f"{name}: shape {shape}; expected (N, ...) with at least one item")


def _choose_members(path: Path) -> tuple[str, str | None]:
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
    labels = next((name for name in ("labels.npy", "y.npy") if name in members), None)
    arrays = [name for name in members if name not in ("labels.npy", "y.npy")]
    if not arrays:
        raise DataError(
            f"{path}: holds no array of inputs (found {members}); expected 'images' or 'x'"
        )
    return next((name for name in ("images.npy", "x.npy") if name in arrays), arrays[0]), labels


def _read_header(file: IO[bytes], name: str) -> _Header:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        header = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        header = np.lib.format.read_array_header_2_0(file)
    else:
        raise DataError(f"{name}: .npy format version {version}; expected 1.0 or 2.0")
    return _Header(*header, offset=file.tell())
