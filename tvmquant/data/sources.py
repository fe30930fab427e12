"""Open calibration and evaluation data: images, NumPy files or iterables, as float batches."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tvmquant.data.arrays import ArraySource, IterableSource, NumpyFileSource
from tvmquant.data.images import ImageSource
from tvmquant.data.items import Item, Source, check_dtype
from tvmquant.data.preprocess import Preprocess, PreprocessLike
from tvmquant.errors import DataError

Shape = Sequence[int | None]


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

    Iterating yields ``(batch, labels)``: float32 of shape (n, ...) with n = `batch_size` except for
    the last batch, and int64 of shape (n,) or None. Each batch is a fresh array, and nothing is
    kept between batches. ``len`` counts the items, not the batches. Made by `open_data`.

    Notes
    -----
    Decoding runs in the caller's thread. Two decoding threads on two cores gained 5 % on 256x256
    JPEG files and lost 60 % on 32x32 ones, and would compete with the network for the cores.
    """

    def __init__(
        self,
        source: Source,
        preprocess: Preprocess,
        input_shape: Shape | None,
        batch_size: int,
        subsets: tuple[Subset, ...] = (),
    ) -> None:
        self.preprocess = preprocess
        self.batch_size = batch_size
        self._source = source
        self._input_shape = None if input_shape is None else tuple(input_shape)
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

    def __iter__(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64] | None]]:
        items = self._source.read(self._positions())
        first = None
        count = 0
        while chunk := list(itertools.islice(items, self.batch_size)):
            tensors = []
            for item in chunk:
                tensor = self._tensor(item)
                self._check_shape(item, tensor.shape, first)
                first = first or tensor.shape
                tensors.append(tensor)
            count += len(chunk)
            labels = None
            if self.has_labels:
                labels = np.array([item.label for item in chunk], np.int64)
            yield np.stack(tensors), labels
        if count == 0:
            raise DataError(f"{self.name}: the selection {self._subsets} holds no item")

    def _selected(self, subset: Subset) -> Dataset:
        return Dataset(
            self._source,
            self.preprocess,
            self._input_shape,
            self.batch_size,
            (*self._subsets, subset),
        )

    def _positions(self) -> Iterator[int]:
        length = self._source.length
        positions: Iterator[int] = itertools.count() if length is None else iter(range(length))
        for subset in self._subsets:
            positions = subset.positions(positions)
        return positions

    def _tensor(self, item: Item) -> NDArray[np.float32]:
        value = item.value
        if isinstance(value, Image.Image) or value.dtype == np.uint8:
            return self.preprocess.apply(value, item.name)
        check_dtype(value.dtype, item.name)
        with np.errstate(over="ignore"):
            tensor = value.astype(np.float32)
        if tensor.size == 0:
            raise DataError(f"{item.name}: empty array of shape {tensor.shape}")
        if not np.isfinite(tensor).all():
            raise DataError(f"{item.name}: holds NaN or Inf in float32; expected finite values")
        return tensor

    def _check_shape(
        self, item: Item, found: tuple[int, ...], first: tuple[int, ...] | None
    ) -> None:
        expectations = (
            ("the model's input takes", self._input_shape),
            ("the first item has", first),
        )
        for what, expected in expectations:
            if expected is None or _fits(found, expected):
                continue
            hint = ""
            if isinstance(item.value, Image.Image) or item.value.dtype == np.uint8:
                hint = "; set 'resize', 'crop' or 'layout' in the preprocessing recipe"
            raise DataError(
                f"{item.name}: shape {found} after preprocessing, but {what} "
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
    batch_size: int = 16,
    select: Subset | str | Mapping[str, Any] | None = None,
) -> Dataset:
    """Open data for calibration or evaluation.

    Parameters
    ----------
    source : path, numpy array or iterable
        A folder or uncompressed .tar of images (labelled by ``labels.csv``, by class folder, or
        not); a .npy of shape (N, ...); an .npz (``images``/``x``/its first array, optionally
        ``labels``/``y``); an array (N, ...); an iterable of arrays or of (array, label) pairs.
        8-bit arrays are images and go through `preprocess`; float arrays are taken as they are.
    preprocess : Preprocess, str, path, mapping or None
        See `Preprocess.parse`.
    input_shape : sequence of int or None, optional
        Shape of one item without the batch axis; None for an extent that may be anything.
        Default: the shape of the first item, which all the others must have.
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
    data = Dataset(_open_source(source, input_shape), recipe, input_shape, batch_size)
    return data if select is None else data._selected(Subset.parse(select))


def _open_source(source: Any, input_shape: Shape | None) -> Source:
    if isinstance(source, np.ndarray):
        return ArraySource(source, "array")
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not os.fspath(source) or not path.exists():
            raise DataError(f"data {os.fspath(source)!r} does not exist")
        if path.is_dir() or path.suffix.lower() == ".tar":
            return ImageSource(path)
        if path.suffix.lower() in (".npy", ".npz"):
            return NumpyFileSource(path)
        raise DataError(
            f"data {str(path)!r} is of an unknown kind; expected a folder or .tar of images, a "
            ".npy or an .npz"
        )
    if isinstance(source, Iterable) and not isinstance(source, (bytes, Mapping)):
        return IterableSource(source, None if input_shape is None else len(input_shape))
    raise DataError(
        f"data of type {type(source).__name__} cannot be read; expected a path, a numpy array, or "
        "an iterable of arrays or (array, label) pairs"
    )
