"""What an exported model is compared on: random inputs, or items of a data set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tvmquant.data import Dataset, arrays_of
from tvmquant.errors import DataError, ModelError
from tvmquant.export.runtime import Array
from tvmquant.graph import Graph
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of

# Of random ones; of a data set a few more, which are real.
RANDOM_ITEMS = 2
ITEMS = 4

Item = tuple[Array, ...]


def random_items(graph: Graph, count: int = RANDOM_ITEMS) -> Iterator[Item]:
    """Draw inputs within the ranges that an annotated graph was calibrated for.

    Parameters
    ----------
    graph : Graph
        Level L1. A batch that it fixes is drawn whole.
    count : int

    Raises
    ------
    ModelError
        When an extent other than the batch is not known.
    """
    ranges = _ranges(graph)
    generator = np.random.default_rng(0)
    batch = graph.fixed_batch() or 1
    for _ in range(count):
        yield tuple(
            _drawn(generator, (batch, *_known(name, shape)), dtype, ranges.get(name, (-1.0, 1.0)))
            for name, shape, dtype in graph.item_inputs()
        )


def items_of(data: Dataset, graph: Graph, count: int = ITEMS) -> Iterator[Item]:
    """Yield the first items of a data set, each as a batch of as many as the graph takes.

    Raises
    ------
    DataError
        When there are fewer than one batch.
    """
    batch, pending = graph.fixed_batch() or 1, count
    rows: list[list[Array]] = []
    for arrays in (arrays_of(found) for found, _ in data.subset(limit=count * batch)):
        rows += [[array[i] for array in arrays] for i in range(len(arrays[0]))]
        while len(rows) >= batch and pending:
            yield tuple(np.stack(column) for column in zip(*rows[:batch], strict=True))
            rows, pending = rows[batch:], pending - 1
    if pending == count:
        raise DataError(f"{data.name}: {len(rows)} items; the model takes batches of {batch}")


def _known(name: str, shape: tuple[int | None, ...] | None) -> tuple[int, ...]:
    extents = [extent for extent in shape or () if extent is not None]
    if shape is None or len(extents) < len(shape):
        raise ModelError(
            f"the input {name!r} has the shape {(None, *(shape or ()))}; import the model with "
            "input_shapes (--input-shape)"
        )
    return tuple(extents)


def _ranges(graph: Graph) -> dict[str, tuple[float, float]]:
    """Return the least and greatest number that inputs are quantized to, by name."""
    names = dict(zip(graph.main.params, graph.input_names, strict=True))
    found: dict[str, tuple[float, float]] = {}
    for _, value in bindings_of(graph.main):
        if qop.is_call(value, qop.FAKE_QUANT) and value.args[0] in names:
            attrs = qop.attributes(value)
            scale, zero = (qop.constant_array(arg).reshape(-1) for arg in value.args[1:3])
            low, high = (float(scale.max() * (attrs[end] - zero[0])) for end in ("qmin", "qmax"))
            found[names[value.args[0]]] = low, high
    return found


def _drawn(
    generator: np.random.Generator, shape: tuple[int, ...], dtype: str, span: tuple[float, float]
) -> Array:
    if dtype == "float32":  # few lie near the ends, as of real data
        low, high = span
        drawn = generator.normal((low + high) / 2, (high - low) / 6, shape)
        return np.clip(drawn, low, high).astype(dtype)
    if dtype in ("uint8", "int8"):
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, limits.max + 1, shape).astype(dtype)
    # indices that every table has, or booleans
    return generator.integers(2, size=shape).astype(dtype)
