"""Open calibration and evaluation data: images, NumPy files or iterables, as batches of inputs."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tvmquant.data.arrays import ArraySource, NumpyFileSource
from tvmquant.data.images import ImageSource
from tvmquant.data.items import (
    LABELS,
    InputSpec,
    Item,
    Source,
    Value,
    as_input,
    integer_labels,
    names_of,
    to_array,
)
from tvmquant.data.iterables import Indexed, IterableSource, Reader, values_by_name
from tvmquant.data.preprocess import Preprocess, PreprocessLike
from tvmquant.errors import DataError

Shape = Sequence[int | None]
# One array, or a tuple of one for each input where the network has several.
Batch: TypeAlias = Any


@dataclasses.dataclass(frozen=True)
class Subset:
    """Choose items by their position: every `step`-th one, or all the others.

    Parameters
    ----------
    step, offset : int
        Keep the positions where ``position % step == offset``; 0 <= offset < step.
    exclude : bool
        Keep the other positions instead.
    limit : int, optional
        Keep at most so many, the first ones.

    Examples
    --------
    >>> list(Subset(step=10).positions(range(25)))
    [0, 10, 20]
    >>> Subset.parse("step=10,exclude,limit=3")
    Subset(step=10, offset=0, exclude=True, limit=3)
    """

    step: int = 1
    offset: int = 0
    exclude: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        for field, low in (("step", 1), ("offset", 0), ("limit", 1)):
            value = getattr(self, field)
            if value is None and field == "limit":
                continue
            if type(value) is not int or not low <= value <= sys.maxsize:
                raise DataError(
                    f"subset: {field} = {value!r}; expected an integer from {low} to {sys.maxsize}"
                )
        if self.offset >= self.step:
            raise DataError(
                f"subset: offset = {self.offset} never occurs with step = {self.step}; expected "
                "0 <= offset < step"
            )
        if self.exclude and self.step == 1:
            raise DataError("subset: step = 1 with exclude keeps nothing; use step >= 2")

    @classmethod
    def parse(cls, spec: Subset | str | Mapping[str, Any] | None) -> Subset:
        """Return the subset that a string ("step=10,exclude"), a mapping or None stands for."""
        if isinstance(spec, Subset):
            return spec
        fields: dict[str, Any] = {}
        if isinstance(spec, str):
            for part in filter(None, (part.strip() for part in spec.split(","))):
                key, _, value = part.partition("=")
                try:
                    fields[key] = True if part == "exclude" else int(value)
                except ValueError:
                    raise DataError(
                        f"subset {spec!r}: {part!r} is not understood; expected a list such as "
                        "'step=10,offset=0,limit=100' or 'step=10,exclude'"
                    ) from None
        elif spec is not None:
            fields = dict(spec)
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(fields) - set(known)):
            raise DataError(f"subset {spec!r}: unknown {unknown}; expected some of {known}")
        return cls(**fields)

    def positions(self, positions: Iterable[int]) -> Iterator[int]:
        """Yield those of `positions` that are kept, counting them from 0."""
        kept = (
            position
            for index, position in enumerate(positions)
            if (index % self.step == self.offset) != self.exclude
        )
        return itertools.islice(kept, self.limit)


class Dataset:
    """Batches of network inputs, read and preprocessed while iterating.

    Iterating yields ``(batch, labels)``: an array of the input's type and shape (n, ...) with n =
    `batch_size` except for the last batch, or a tuple of one for each input where the network has
    several; and int64 of shape (n,) or None. Each batch is a fresh array, and nothing is kept
    between batches. ``len`` counts the items, not the batches. Made by `open_data`.

    Notes
    -----
    Decoding runs in the caller's thread. Two decoding threads on two cores gained 5 % on 256x256
    JPEG files and lost 60 % on 32x32 ones, and would compete with the network for the cores.
    """

    def __init__(
        self,
        source: Source,
        preprocess: Preprocess,
        inputs: tuple[InputSpec, ...],
        batch_size: int,
        subsets: tuple[Subset, ...] = (),
    ) -> None:
        self.preprocess = preprocess
        self.batch_size = batch_size
        self._source = source
        self._inputs = inputs
        self._subsets = subsets
        self._length = None if source.length is None else sum(1 for _ in self._positions())
        if self._length == 0:
            raise DataError(
                f"{self.name}: none of its {source.length} items is selected by {subsets[-1]}"
            )

    @property
    def name(self) -> str:
        """What messages call the data."""
        return self._source.name

    @property
    def has_labels(self) -> bool:
        """Whether the batches come with labels."""
        return self._source.has_labels

    @property
    def has_length(self) -> bool:
        """Whether the number of items is known before reading them (not so for a generator)."""
        return self._length is not None

    def __len__(self) -> int:
        if self._length is None:
            # The error that list() and other callers of len() know how to handle.
            raise TypeError(f"the number of items of the {self.name} is not known in advance")
        return self._length

    def subset(
        self, *, step: int = 1, offset: int = 0, exclude: bool = False, limit: int | None = None
    ) -> Dataset:
        """Return the items that a `Subset` keeps, counted within this data set.

        Examples
        --------
        >>> data = open_data(np.zeros((30, 4), np.float32))
        >>> len(data.subset(step=10)), len(data.subset(step=10, exclude=True))
        (3, 27)
        """
        return self._selected(Subset(step, offset, exclude, limit))

    def fingerprint(self) -> str | None:
        """Return a digest of the selected items, their order, labels and preprocessing.

        It does not depend on where the files lie, on their names, on folder or .tar, nor on the
        batch size. None for data that can be read only once: such data cannot be recognised again.
        """
        if not self._source.reiterable:
            return None
        digest = hashlib.sha256(self.preprocess.model_dump_json().encode())
        for data, label in self._source.content(self._positions()):
            digest.update(f"|{len(data)},{label}|".encode())
            digest.update(data)
        return digest.hexdigest()

    def __iter__(self) -> Iterator[tuple[Batch, NDArray[np.int64] | None]]:
        items = self._source.read(self._positions())
        first: tuple[tuple[int, ...], ...] | None = None
        count = 0
        while chunk := list(itertools.islice(items, self.batch_size)):
            rows = []
            for item in chunk:
                row = self._tensors(item)
                self._check_shapes(item, row, first)
                first = first or tuple(tensor.shape for tensor in row)
                rows.append(row)
            count += len(chunk)
            labels = None
            if self.has_labels:
                labels = np.array([item.label for item in chunk], np.int64)
            batch = tuple(np.stack(tensors) for tensors in zip(*rows, strict=True))
            yield batch if len(batch) > 1 else batch[0], labels
        if count == 0:
            raise DataError(f"{self.name}: the selection {self._subsets} holds no item")

    def _selected(self, subset: Subset) -> Dataset:
        return Dataset(
            self._source,
            self.preprocess,
            self._inputs,
            self.batch_size,
            (*self._subsets, subset),
        )

    def rebatched(self, batch_size: int) -> Dataset:
        """Return the same items in batches of another size."""
        return Dataset(self._source, self.preprocess, self._inputs, batch_size, self._subsets)

    def _positions(self) -> Iterator[int]:
        length = self._source.length
        positions: Iterator[int] = itertools.count() if length is None else iter(range(length))
        for subset in self._subsets:
            positions = subset.positions(positions)
        return positions

    def _tensors(self, item: Item) -> tuple[NDArray[Any], ...]:
        return tuple(
            self._tensor(value, self._part(item, spec), spec)
            for value, spec in zip(item.values, self._inputs, strict=True)
        )

    def _tensor(self, value: Value, name: str, spec: InputSpec) -> NDArray[Any]:
        is_image = isinstance(value, Image.Image) or value.dtype == np.uint8
        if spec.is_float and is_image:
            return self.preprocess.apply(value, name)
        if not isinstance(value, np.ndarray):
            pixels = self.preprocess.pixels(value, name, spec.describe(), spec.dtype)
            return as_input(pixels, name, spec)
        ready = spec.shape is None or _fits(value.shape, spec.shape)
        if not spec.is_float and is_image and (self.preprocess.cuts or not ready):
            value = self.preprocess.pixels(value, name, spec.describe(), spec.dtype)
        return as_input(value, name, spec)

    def _part(self, item: Item, spec: InputSpec) -> str:
        return f"{item.name}, {spec.describe()}" if len(self._inputs) > 1 else item.name

    def _check_shapes(
        self,
        item: Item,
        tensors: tuple[NDArray[Any], ...],
        first: tuple[tuple[int, ...], ...] | None,
    ) -> None:
        for index, spec in enumerate(self._inputs):
            self._check_shape(
                self._part(item, spec),
                spec,
                item.values[index],
                tensors[index].shape,
                None if first is None else first[index],
            )

    def _check_shape(
        self,
        name: str,
        spec: InputSpec,
        value: Value,
        found: tuple[int, ...],
        first: tuple[int, ...] | None,
    ) -> None:
        expectations = (
            (f"the model's {spec.describe()} takes", spec.shape),
            ("the first item has", first),
        )
        for what, expected in expectations:
            if expected is None or _fits(found, expected):
                continue
            where = hint = ""
            if isinstance(value, Image.Image) or value.dtype == np.uint8:
                where = " after preprocessing"
                hint = "; set 'resize', 'crop' or 'layout' in the preprocessing recipe"
            raise DataError(
                f"{name}: shape {found}{where}, but {what} "
                f"({', '.join('any' if want is None else str(want) for want in expected)}){hint}"
            )


def _fits(found: tuple[int, ...], expected: Shape) -> bool:
    return len(found) == len(expected) and all(
        want is None or want == extent for want, extent in zip(expected, found, strict=True)
    )


def open_data(
    source: Any,
    preprocess: PreprocessLike = None,
    *,
    input_shape: Shape | None = None,
    inputs: Sequence[InputSpec] | None = None,
    batch_size: int = 16,
    select: Subset | str | Mapping[str, Any] | None = None,
) -> Dataset:
    """Open data for calibration or evaluation.

    Parameters
    ----------
    source : path, array, mapping, iterable or calibration data reader
        A folder or uncompressed .tar of images (labelled by ``labels.csv``, by class folder, or
        not); a .npy of shape (N, ...); an .npz (the inputs by name, or for one input
        ``images``/``x``/its only array; optionally ``labels``/``y``); an array (N, ...), or a pair
        of it and labels; a mapping from the inputs' names to arrays (N, ...); an iterable of items
        or batches, as `IterableSource` says, such as a torch ``DataLoader``; what has items by
        their number, such as a torch ``Dataset``; or an ONNX Runtime ``CalibrationDataReader``.
        8-bit arrays that go to a float input are images and go through `preprocess`; other arrays
        are taken as they are.
    preprocess : Preprocess, str, path, mapping or None
        See `Preprocess.parse`.
    input_shape : sequence of int or None, optional
        Shape of one item without the batch axis; None for an extent that may be anything.
        Default: the shape of the first item, which all the others must have.
    inputs : sequence of InputSpec, optional
        Name, shape and type of each input, instead of `input_shape`; `Graph.item_inputs` returns
        them.
    batch_size : int
        Items per batch.
    select : Subset, str or mapping, optional
        See `Subset`; such as ``"step=10"`` for every tenth item and ``"step=10,exclude"`` for the
        others.

    Raises
    ------
    DataError
        When the data are missing, empty, damaged, of the wrong type, or do not fit `input_shape`
        (for single items: while iterating). The message names the file.

    Examples
    --------
    >>> data = open_data(np.zeros((10, 3, 8, 8), np.float32), batch_size=4)
    >>> [batch.shape[0] for batch, _ in data]
    [4, 4, 2]
    """
    if type(batch_size) is not int or batch_size < 1:
        raise DataError(f"batch_size = {batch_size!r}; expected an integer >= 1")
    recipe = Preprocess.parse(preprocess)
    shape = None if input_shape is None else tuple(input_shape)
    specs = (InputSpec("", shape),) if inputs is None else tuple(inputs)
    data = Dataset(_open_source(source, specs), recipe, specs, batch_size)
    return data if select is None else data._selected(Subset.parse(select))


def arrays_of(batch: Batch) -> tuple[NDArray[Any], ...]:
    """Return the array of each input in a batch of a `Dataset`."""
    return batch if isinstance(batch, tuple) else (batch,)


def filled_up(arrays: Sequence[NDArray[Any]], batch: int) -> tuple[NDArray[Any], ...]:
    """Return arrays of `batch` items, by repeating the last one."""
    missing = batch - len(arrays[0])
    if missing == 0:
        return tuple(arrays)
    return tuple(np.concatenate([array, *[array[-1:]] * missing]) for array in arrays)


def _open_source(source: Any, inputs: tuple[InputSpec, ...]) -> Source:
    if isinstance(source, (str, os.PathLike)):
        return _open_path(Path(source), inputs)
    if isinstance(source, np.ndarray) and len(inputs) == 1:
        return ArraySource([source], "array", inputs)
    if callable(getattr(source, "get_next", None)):
        return IterableSource(Reader(source), inputs)
    if isinstance(source, Mapping):
        return _columns(source, inputs)
    if isinstance(source, (tuple, list)) and _are_columns(source, inputs):
        count = len(inputs)
        arrays = [to_array(array, f"{type(source).__name__} of arrays") for array in source]
        labels = None
        if len(arrays) > count:
            labels = integer_labels(arrays[count], len(arrays[0]), "labels")
        return ArraySource(arrays[:count], f"{type(source).__name__} of arrays", inputs, labels)
    if isinstance(source, np.ndarray):
        raise DataError(
            f"one array, but the model has {len(inputs)} inputs ({names_of(inputs)}); pass a "
            "mapping from their names to arrays"
        )
    if isinstance(source, Iterable) and not isinstance(source, bytes):
        return IterableSource(source, inputs)
    if (
        hasattr(source, "__len__")
        and hasattr(source, "__getitem__")
        and not isinstance(source, bytes)
    ):
        return IterableSource(Indexed(source), inputs)
    raise DataError(
        f"data of type {type(source).__name__} cannot be read; expected a path, a numpy array, a "
        "mapping from the inputs' names to arrays, or an iterable of arrays, of such mappings or "
        "of (array, label) pairs"
    )


def _open_path(path: Path, inputs: tuple[InputSpec, ...]) -> Source:
    if not path.name or not path.exists():
        raise DataError(f"data {os.fspath(path) if path.name else ''!r} does not exist")
    if path.suffix.lower() in (".npy", ".npz"):
        return NumpyFileSource(path, inputs)
    if not path.is_dir() and path.suffix.lower() != ".tar":
        raise DataError(
            f"data {str(path)!r} is of an unknown kind; expected a folder or .tar of images, a "
            ".npy or an .npz"
        )
    if len(inputs) > 1:
        raise DataError(
            f"data {str(path)!r} holds images, but the model has {len(inputs)} inputs "
            f"({names_of(inputs)}); store one array for each under its name in an .npz"
        )
    return ImageSource(path)


def _columns(source: Mapping[str, Any], inputs: tuple[InputSpec, ...]) -> Source:
    """Return the rows of a mapping from names to arrays."""
    arrays = [
        to_array(value, f"mapping of arrays, {spec.describe()}")
        for value, spec in zip(
            values_by_name(source, inputs, "mapping of arrays"), inputs, strict=True
        )
    ]
    own = {spec.name for spec in inputs}
    label_name = next((name for name in LABELS if name in source and name not in own), None)
    labels = None
    if label_name is not None:
        labels = integer_labels(source[label_name], len(arrays[0]), f"{label_name!r}")
    return ArraySource(arrays, "mapping of arrays", inputs, labels)


def _are_columns(source: Sequence[Any], inputs: tuple[InputSpec, ...]) -> bool:
    """Whether a sequence holds all items of each input, and perhaps all labels.

    One array of a network with one input is an element of a list of items or batches; it is
    followed by labels in a tuple only.
    """
    count, found = len(inputs), len(source)
    if count == 1 and not (isinstance(source, tuple) and found == 2):
        return False
    if found not in (count, count + 1) or not all(hasattr(each, "shape") for each in source):
        return False
    whole = all(
        spec.shape is not None and len(each.shape) == len(spec.shape) + 1
        for each, spec in zip(source, inputs, strict=False)
    )
    return whole and (found == count or len(source[count].shape) == 1)
