"""What every data source hands to a `Dataset`: named items, one at a time, in a fixed order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tvmquant.errors import DataError

LABELS = ("labels", "label", "y")

Value: TypeAlias = Image.Image | NDArray[Any]


class InputSpec(NamedTuple):
    """What one input of a network takes.

    Attributes
    ----------
    name : str
        ``""`` where it is not known.
    shape : tuple of int or None, optional
        Of one item, without the batch axis; None for an extent, or a shape, that may be anything.
    dtype : str
        ``"float32"``, an integer type or ``"bool"``.
    """

    name: str
    shape: tuple[int | None, ...] | None
    dtype: str = "float32"

    @property
    def is_float(self) -> bool:
        """Whether it takes real numbers."""
        return self.dtype == "float32"

    def item_rank(self, found: np.dtype[Any]) -> int | None:
        """Return how many axes one item of type `found` has, without the batch axis."""
        if self.is_float and found == np.uint8:
            return 3  # an image
        return None if self.shape is None else len(self.shape)

    def describe(self) -> str:
        """Return what messages call the input."""
        return f"input {self.name!r}" if self.name else "input"


ANY_INPUT = InputSpec("", None)


def names_of(inputs: tuple[InputSpec, ...]) -> str:
    """Return a list of inputs for a message."""
    return ", ".join(repr(spec.name) for spec in inputs)


class Item(NamedTuple):
    """One sample: its name in messages, its values (no batch axis) and its label if there is one.

    There is one value for each input of the network, in their order.
    """

    name: str
    values: tuple[Value, ...]
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
            arrays = [np.asarray(value) for value in item.values]
            parts = [f"{a.dtype.str}{a.shape}".encode() + a.tobytes() for a in arrays]
            yield b"".join(parts), item.label


def check_dtype(dtype: np.dtype[Any], name: str, spec: InputSpec = ANY_INPUT) -> None:
    """Raise `DataError` unless items of `dtype` can be fed to an input."""
    if spec.is_float:
        if dtype != np.uint8 and not (dtype.kind == "f" and dtype.itemsize <= 8):
            raise DataError(
                f"{name}: dtype {dtype} is not supported; expected uint8 (images, which go through "
                "the preprocessing recipe) or float16/float32/float64 (tensors ready for the "
                "network)"
            )
    elif dtype.kind not in ("b" if spec.dtype == "bool" else "iu"):
        raise DataError(
            f"{name}: dtype {dtype}, but the model's {spec.describe()} takes {spec.dtype}; convert "
            "the data"
        )


def to_array(value: Any, name: str) -> NDArray[Any]:
    """Return what a user hands over as an array, torch tensors of any device and type included.

    Raises
    ------
    DataError
        When it is no array, such as a list of rows of different lengths.
    """
    if hasattr(value, "detach"):  # a torch tensor, which may require a gradient
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # numpy has no such type
            value = value.float()
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name}: {type(value).__name__} is no array: {error}") from error


def as_input(array: NDArray[Any], name: str, spec: InputSpec) -> NDArray[Any]:
    """Return values as the input's type.

    Raises
    ------
    DataError
        When they are of another kind, not finite, or beyond what the type holds.
    """
    check_dtype(array.dtype, name, spec)
    if array.size == 0:
        raise DataError(f"{name}: empty array of shape {array.shape}")
    if not spec.is_float:
        dtype = np.dtype(spec.dtype)
        if dtype.kind != "b":
            limits = np.iinfo(dtype)
            low, high = int(array.min()), int(array.max())
            if low < limits.min or high > limits.max:
                raise DataError(
                    f"{name}: values from {low} to {high}, but the model's {spec.describe()} takes "
                    f"{spec.dtype}, {limits.min} to {limits.max}"
                )
        return array.astype(dtype)
    with np.errstate(over="ignore"):
        tensor = array.astype(np.float32)
    if not np.isfinite(tensor).all():
        raise DataError(f"{name}: holds NaN or Inf in float32; expected finite values")
    return tensor


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
