"""Floating-point numbers of any width, all of which are float32 in a graph."""

from __future__ import annotations

import numpy as np

from tvmquant.frontend.dimensions import Array, UnsupportedNodeError

FLOAT_KINDS = ("float16", "float32", "float64", "bfloat16")


def as_float32(array: Array) -> Array:
    """Return floating-point arrays as float32, others unchanged (4-bit integers as 8-bit ones)."""
    name = array.dtype.name
    if name in FLOAT_KINDS:
        return array.astype(np.float32, copy=False)
    if name in ("int4", "uint4", "int2", "uint2"):
        return array.astype(np.int8 if name.startswith("int") else np.uint8)
    if name.startswith("float"):
        raise UnsupportedNodeError(f"a constant has element type {name}")
    return array
