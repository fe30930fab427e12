"""Arrays in memory and in .npy and .npz files."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tvmquant.data.items import (
    ANY_INPUT,
    InputSpec,
    Item,
    Source,
    check_dtype,
    integer_labels,
    names_of,
)
from tvmquant.errors import DataError

# An .npz may hold labels under these names.
_LABEL_MEMBERS = ("labels", "y")


class ArraySource(Source):
    """The rows of arrays (N, ...) in memory, one for each input."""

    def __init__(
        self,
        arrays: Sequence[NDArray[Any]],
        name: str,
        inputs: tuple[InputSpec, ...] = (ANY_INPUT,),
        labels: NDArray[np.int64] | None = None,
    ) -> None:
        for array, spec in zip(arrays, inputs, strict=True):
            _check_array(array.dtype, array.shape, _part(name, spec, inputs), spec)
        _check_counts([array.shape for array in arrays], inputs, name)
        self.name = name
        self.length = len(arrays[0])
        self.has_labels = labels is not None
        self._arrays = tuple(arrays)
        self._labels = labels

    def read(self, positions: Iterator[int]) -> Iterator[Item]:
        """Yield views of the rows."""
        for position in positions:
            label = None if self._labels is None else int(self._labels[position])
            values = tuple(np.asarray(array[position]) for array in self._arrays)
            yield Item(f"{self.name}[{position}]", values, label)


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    offset: int


class _Rows:
    """The rows of one array in a file, read one at a time."""

    def __init__(self, path: Path, member: str | None, name: str, spec: InputSpec) -> None:
        self._path = path
        self._member = member
        with ExitStack() as stack:
            file, size = self._open(stack)
            self.header = header = _read_header(file, name)
        _check_array(header.dtype, header.shape, name, spec)
        self._row_size = header.dtype.itemsize * int(np.prod(header.shape[1:], dtype=object))
        if header.offset + header.shape[0] * self._row_size > size:
            raise DataError(
                f"{name}: truncated: the header promises {header.shape} {header.dtype}, "
                f"the file has only {size - header.offset} bytes of data"
            )

    def opened(self, stack: ExitStack) -> IO[bytes]:
        """Return a file to hand to `row`."""
        return self._open(stack)[0]

    def row(self, file: IO[bytes], position: int) -> NDArray[Any]:
        """Read a row."""
        header = self.header
        file.seek(header.offset + position * self._row_size)
        data = file.read(self._row_size)
        return np.frombuffer(data, header.dtype).reshape(header.shape[1:])

    def whole(self) -> NDArray[Any]:
        """Read all rows."""
        loaded = np.load(self._path, allow_pickle=False)
        if self._member is not None:
            with loaded:
                loaded = loaded[self._member.removesuffix(".npy")]
        array: NDArray[Any] = loaded
        return array

    def _open(self, stack: ExitStack) -> tuple[IO[bytes], int]:
        if self._member is None:
            return stack.enter_context(self._path.open("rb")), self._path.stat().st_size
        archive = stack.enter_context(zipfile.ZipFile(self._path))
        member = stack.enter_context(archive.open(self._member))
        return member, archive.getinfo(self._member).file_size


class NumpyFileSource(Source):
    """The rows of a .npy file, or of the arrays of an .npz, read one at a time.

    An .npz holds the rows of each input under its name; for one input also under ``images``, ``x``,
    or else in its only array. Labels are under ``labels`` or ``y``. Files in Fortran order are
    read whole.
    """

    def __init__(self, path: Path, inputs: tuple[InputSpec, ...] = (ANY_INPUT,)) -> None:
        self.name = str(path)
        self._inputs = inputs
        self._labels: NDArray[np.int64] | None = None
        members: list[str | None] = [None]
        labels_member = None
        try:
            if path.suffix.lower() == ".npz":
                chosen, labels_member = _choose_members(path, inputs)
                members = list(chosen)
            elif len(inputs) > 1:
                raise DataError(
                    f"{self.name}: one array, but the model has {len(inputs)} inputs "
                    f"({names_of(inputs)}); store one array for each under its name in an .npz"
                )
            self._rows = [
                _Rows(path, member, _part(self.name, spec, inputs), spec)
                for member, spec in zip(members, inputs, strict=True)
            ]
            shapes = [rows.header.shape for rows in self._rows]
            _check_counts(shapes, inputs, self.name)
            if labels_member is not None:
                with np.load(path, allow_pickle=False) as archive:
                    labels = archive[labels_member.removesuffix(".npy")]
                self._labels = integer_labels(labels, shapes[0][0], self.name)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{self.name}: cannot be read as a NumPy file: {error}") from error
        self.length = shapes[0][0]
        self.has_labels = self._labels is not None

    def read(self, positions: Iterator[int]) -> Iterator[Item]:
        """Read the rows by their position in the file."""
        if any(rows.header.fortran_order for rows in self._rows):
            arrays = [rows.whole() for rows in self._rows]
            yield from ArraySource(arrays, self.name, self._inputs, self._labels).read(positions)
            return
        with ExitStack() as stack:
            files = [rows.opened(stack) for rows in self._rows]
            for position in positions:
                name = f"{self.name}[{position}]"
                try:
                    values = tuple(
                        rows.row(file, position)
                        for rows, file in zip(self._rows, files, strict=True)
                    )
                except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                    raise DataError(f"{name}: cannot be read: {error}") from error
                label = None if self._labels is None else int(self._labels[position])
                yield Item(name, values, label)


def _part(name: str, spec: InputSpec, inputs: tuple[InputSpec, ...]) -> str:
    return f"{name}, {spec.describe()}" if len(inputs) > 1 else name


def _check_array(dtype: np.dtype[Any], shape: tuple[int, ...], name: str, spec: InputSpec) -> None:
    check_dtype(dtype, name, spec)
    least = 1 if spec.shape == () else 2
    if len(shape) < least or 0 in shape:
        raise DataError(f"{name}: shape {shape}; expected (N, ...) with at least one item")


def _check_counts(shapes: list[tuple[int, ...]], inputs: tuple[InputSpec, ...], name: str) -> None:
    if len({shape[0] for shape in shapes}) > 1:
        counts = ", ".join(
            f"{shape[0]} of {spec.name!r}" for shape, spec in zip(shapes, inputs, strict=True)
        )
        raise DataError(f"{name}: {counts}; expected as many items of each input")


def _choose_members(path: Path, inputs: tuple[InputSpec, ...]) -> tuple[list[str], str | None]:
    """Return the members that hold the inputs, and the one that holds labels."""
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
    wanted = [f"{spec.name}.npy" for spec in inputs]
    label_names = [f"{name}.npy" for name in _LABEL_MEMBERS if f"{name}.npy" not in wanted]
    labels = next((name for name in label_names if name in members), None)
    arrays = [name for name in members if name not in label_names]
    if all(name in arrays for name in wanted):
        return wanted, labels
    if len(inputs) > 1:
        lacking = ", ".join(spec.name for spec in inputs if f"{spec.name}.npy" not in arrays)
        raise DataError(
            f"{path}: holds {', '.join(n.removesuffix('.npy') for n in members) or 'nothing'} and "
            f"lacks {lacking}; the model takes {names_of(inputs)}, each under its name"
        )
    if not arrays:
        raise DataError(
            f"{path}: holds no array of inputs (found {members}); expected 'images' or 'x'"
        )
    known = next((name for name in ("images.npy", "x.npy") if name in arrays), arrays[0])
    if len(arrays) > 1 and known not in ("images.npy", "x.npy"):
        named = f" as {inputs[0].name!r}" if inputs[0].name else ""
        raise DataError(
            f"{path}: holds {', '.join(name.removesuffix('.npy') for name in arrays)}; store the "
            f"model's input{named}, or under 'images' or 'x'"
        )
    return [known], labels


def _read_header(file: IO[bytes], name: str) -> _Header:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        header = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        header = np.lib.format.read_array_header_2_0(file)
    else:
        raise DataError(f"{name}: .npy format version {version}; expected 1.0 or 2.0")
    return _Header(*header, offset=file.tell())
