"""Ranges from random items: enough to know which kernels a network gets, not for its accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tvmquant.errors import ModelError

if TYPE_CHECKING:
    from tvmquant.calibration import Calibration
    from tvmquant.graph import Graph

ITEMS = 2


def calibrate_with_random_items(graph: Graph) -> Calibration:
    """Calibrate a float graph (L0) with a few random items.

    What decides on kernels comes out as with data: which activations are never negative, and which
    weights neighbours are. How wide the ranges are does not matter for that.

    Raises
    ------
    ModelError
        When an input has an extent that is not known.
    """
    from tvmquant.quantization import calibrate

    batch = graph.fixed_batch() or ITEMS
    generator = np.random.default_rng(0)
    items = {}
    for name, shape, dtype in graph.item_inputs():
        extents = [extent for extent in shape or () if extent is not None]
        if shape is None or len(extents) < len(shape):
            raise ModelError(
                f"the input {name!r} has the shape {(None, *(shape or ()))}; its kernels depend on "
                "its extents, pass them as input_shapes (--input-shape)"
            )
        size = (batch, *extents)
        if dtype == "float32":
            items[name] = generator.standard_normal(size).astype(dtype)
        else:  # integers that every table of an embedding has, or booleans
            items[name] = generator.integers(2, size=size).astype(dtype)
    return calibrate(graph, items, method="minmax", batch_size=batch)
