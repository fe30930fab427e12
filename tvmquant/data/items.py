"""What every data source hands to a `Dataset`: named items, one at a time, in a fixed order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tvmquant.errors import DataError


class Item(NamedTuple):
    """One sample: its name in messages, its value (no batch axis) and its label if there is one."""

    name: str
    value: Image.Image | NDArray[Any]
    label: int | None


class Source(ABC):
    """Items that are read in increasing order of their position, without keeping them.

    Attributes
    ----------
    name : str
        What messages call the source.
    length : int or None
        Number of items; None where it is only known after reading them all.
    has_labels : bool
    reiterable : bool
        False where the items can be read only once.
    """

    name: str
    length: int | None
    has_labels: bool
    reiterable: bool = True

    @abstractmethod
    def read(self, positions: Iterator[int]) -> Iterator[Item]:
        """Yield the items at increasing `positions`; end quietly where the items end."""

    def content(self, positions: Iterator[int]) -> Iterator[tuple[bytes, int | None]]:
        """Yield the bytes and the label of each item, for a fingerprint."""
        for item in self.read(positions):
            value = np.asarray(item.value)
            yield f"{value.dtype.str}{value.shape}".encode() + value.tobytes(), item.label


def check_dtype(dtype: np.dtype[Any], name: str) -> None:
    """Raise `DataError` unless items of `dtype` can be network inputs (uint8 images or floats)."""
    if dtype != np.uint8 and not (dtype.kind == "f" and dtype.itemsize <= 8):
        raise DataError(
            f"{name}: dtype {dtype} is not supported; expected uint8 (images, which go through the "
            "preprocessing recipe) or float16/float32/float64 (tensors ready for the network)"
        )


def integer_labels(labels: Any, count: int | None, name: str) -> NDArray[np.int64]:
    """Return `labels` as int64 of shape (count,); any length where `count` is None.

    Raises
    ------
    DataError
        When they are not integers, or not one per item.
    """
    array = np.asarray(labels)
    if array.dtype.kind not in "iu":
        raise DataError(f"{name}: labels have dtype {array.dtype}; expected integer class indices")
    if array.ndim != 1 or (count is not None and len(array) != count):
        raise DataError(
            f"{name}: labels have shape {array.shape}; expected one class index for each of the "
            f"{'N' if count is None else count} items"
        )
    return array.astype(np.int64)
