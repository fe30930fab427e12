"""What Python hands over item by item or batch by batch: lists, loaders, readers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvmquant.data.items import (
    LABELS,
    InputSpec,
    Item,
    Source,
    check_dtype,
    integer_labels,
    names_of,
    to_array,
)
from tvmquant.errors import DataError


class IterableSource(Source):
    """Values of the inputs, with or without a label, from a Python iterable.

    An element is an array (of a network with one input), a tuple of one array for each input, or a
    mapping from their names; followed by a label, ``(element, label)``, or with one under
    ``labels``, ``label`` or ``y``. Where arrays have one axis more than an item, the element is a
    batch, and its label an array with one label per row: what a torch DataLoader yields is accepted
    as it is. The rank of an item is that of the network's input, and 3 for uint8 images that go to
    a float input.

    Parameters
    ----------
    iterable : iterable
        A generator can be read once; a second pass raises `DataError`.
    inputs : tuple of InputSpec
        Where the shape of an input is not known, elements are items, not batches.
    """

    def __init__(self, iterable: Iterable[Any], inputs: tuple[InputSpec, ...]) -> None:
        self.name = _title(iterable)
        self._inputs = inputs
        self._iterable = iterable
        self._consumed = False
        iterator = iter(iterable)
        self.reiterable = iterator is not iterable and getattr(iterable, "rewinds", True)
        try:
            first = next(iterator)
        except StopIteration:
            raise DataError(f"{self.name}: yields nothing; expected arrays") from None
        self.has_labels = self._split(first, "item 0")[1] is not None
        self._pending = () if self.reiterable else (first,)
        self._rest: Iterable[Any] = iterable if self.reiterable else iterator
        self.length = None
        if isinstance(iterable, (list, tuple)):
            self.length = sum(
                len(self._rows(element, f"{self.name}, element {index}")[0][0])
                for index, element in enumerate(iterable)
            )

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
        for elements in (self._pending, self._rest):
            for element in elements:
                values, labels = self._rows(element, f"{self.name}, item {position}")
                for row in range(len(values[0])):
                    label = None if labels is None else int(labels[row])
                    item = tuple(np.asarray(value[row]) for value in values)
                    yield Item(f"{self.name}, item {position}", item, label)
                    position += 1
            self._pending = ()

    def _rows(
        self, element: Any, name: str
    ) -> tuple[tuple[NDArray[Any], ...], NDArray[np.int64] | None]:
        """Return the rows of each input, and a label for each row."""
        values, label = self._split(element, name)
        if (label is not None) != self.has_labels:
            raise DataError(
                f"{name}: {'has' if label is not None else 'lacks'} a label, unlike the first "
                "item; yield either arrays only, or (array, label) pairs only"
            )
        arrays = [
            _array(value, self._part(name, spec), spec)
            for value, spec in zip(values, self._inputs, strict=True)
        ]
        batched = [
            array.ndim - 1 == spec.item_rank(array.dtype)
            for array, spec in zip(arrays, self._inputs, strict=True)
        ]
        for array, spec in zip(arrays, self._inputs, strict=True):
            if array.size == 0:
                raise DataError(f"{self._part(name, spec)}: empty array of shape {array.shape}")
        is_batch = any(batched)
        if is_batch and not (all(batched) and len({len(array) for array in arrays}) == 1):
            shapes = ", ".join(
                f"{spec.name!r} {array.shape}"
                for spec, array in zip(self._inputs, arrays, strict=True)
            )
            raise DataError(f"{name}: {shapes}; expected one item, or equally many, of each input")
        rows = tuple(arrays) if is_batch else tuple(array[None] for array in arrays)
        if label is None:
            return rows, None
        labels = to_array(label, f"{name}, labels")
        return rows, integer_labels(labels if is_batch else labels.reshape(-1), len(rows[0]), name)

    def _part(self, name: str, spec: InputSpec) -> str:
        return f"{name}, {spec.describe()}" if len(self._inputs) > 1 else name

    def _split(self, element: Any, name: str) -> tuple[tuple[Any, ...], Any]:
        """Return one value for each input, and the label."""
        count = len(self._inputs)
        if isinstance(element, Mapping):
            return self._by_name(element, name)
        if isinstance(element, (tuple, list)):
            if len(element) == 2 and isinstance(element[0], Mapping):
                return self._by_name(element[0], name)[0], element[1]
            nested = len(element) == 2 and isinstance(element[0], (tuple, list)) and count > 1
            if nested and len(element[0]) == count:
                return tuple(element[0]), element[1]
            if len(element) == count:
                return tuple(element), None
            if len(element) == count + 1:
                return tuple(element[:count]), element[count]
        if count > 1:
            found = type(element).__name__
            if isinstance(element, (tuple, list)):
                found += f" of {len(element)}"
            raise DataError(
                f"{name}: found {found}, but the model has {count} inputs "
                f"({names_of(self._inputs)}); expected a mapping from their names, or a tuple of "
                "one array for each"
            )
        return (element,), None

    def _by_name(self, element: Mapping[str, Any], name: str) -> tuple[tuple[Any, ...], Any]:
        label_names = [n for n in LABELS if n not in {spec.name for spec in self._inputs}]
        label = next((element[n] for n in label_names if n in element), None)
        return values_by_name(element, self._inputs, name), label


class Reader:
    """What ONNX Runtime calls a ``CalibrationDataReader``, as an iterable of mappings.

    Parameters
    ----------
    reader : object
        Its ``get_next()`` returns a mapping from the names of the inputs to batches, and None at
        the end; with ``rewind()`` it starts afresh.
    """

    def __init__(self, reader: Any) -> None:
        self.reader = reader
        self.rewinds = _rewinds(reader)
        self._started = False

    def __iter__(self) -> Iterator[Any]:
        if self._started and self.rewinds:
            self.reader.rewind()
        self._started = True
        while (batch := self.reader.get_next()) is not None:
            yield batch


class Indexed:
    """What has items by their number, such as a torch ``Dataset``, as an iterable.

    Parameters
    ----------
    items : object
        With ``len(items)`` and ``items[i]``.
    """

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        return (self.items[index] for index in range(len(self.items)))


def _title(iterable: Iterable[Any]) -> str:
    if isinstance(iterable, Reader):
        return f"reader of type {type(iterable.reader).__name__}"
    if isinstance(iterable, Indexed):
        return f"data of type {type(iterable.items).__name__}"
    return f"iterable of type {type(iterable).__name__}"


def values_by_name(
    values: Mapping[str, Any], inputs: tuple[InputSpec, ...], name: str
) -> tuple[Any, ...]:
    """Return the value of each input from a mapping.

    Raises
    ------
    DataError
        When an input is missing, or a name is neither that of an input nor of labels.
    """
    known = {spec.name for spec in inputs}
    others = [str(key) for key in values if key not in known and key not in LABELS]
    if known == {""}:  # the network is not known
        if len(others) == 1:
            return (values[others[0]],)
        raise DataError(f"{name}: holds {', '.join(map(repr, values))}; expected one array")
    missing = [spec.name for spec in inputs if spec.name not in values]
    if missing or others:
        raise DataError(
            f"{name}: holds {', '.join(map(repr, values)) or 'nothing'}; the model takes "
            f"{names_of(inputs)}, each under its name"
        )
    return tuple(values[spec.name] for spec in inputs)


def _rewinds(reader: Any) -> bool:
    return callable(getattr(reader, "rewind", None))


def _array(value: Any, name: str, spec: InputSpec) -> NDArray[Any]:
    array = to_array(value, name)
    check_dtype(array.dtype, name, spec)
    return array
