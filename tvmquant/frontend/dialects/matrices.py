"""Scales of matrices in a product, one for each row or column."""

from __future__ import annotations

from dataclasses import replace

from tvmquant.frontend.dialects.draft import Draft, Integers
from tvmquant.frontend.dimensions import UnsupportedNodeError


def rows(draft: Draft, tensor: Integers, name: str) -> Integers:
    """Return a left matrix, or a product of matrices, whose scales may differ from row to row.

    Parameters
    ----------
    draft : Draft
    tensor : Integers
        Its scales may have the dimensions of its matrices, (..., M, 1).
    name : str
        What the tensor is to the node that is being written.

    Raises
    ------
    UnsupportedNodeError
        If they differ in another way.
    """
    tensor = draft.matched(tensor, name)
    known = draft.known.array(tensor.scale)
    if known is not None and known.ndim > 1 and known.size > 1:
        if known.shape[-2] != known.size:
            raise UnsupportedNodeError(
                f"scales {tensor.scale!r} have shape {known.shape}, expected one number or one "
                "for each row"
            )
        tensor = flattened(draft, tensor)
    return replace(tensor, axis=-2)


def columns(draft: Draft, tensor: Integers, name: str) -> Integers:
    """Return a right matrix, whose scales may differ from column to column and matrix to matrix.

    Parameters
    ----------
    draft : Draft
    tensor : Integers
        Its scales may have the dimensions of its matrices, (..., 1, N).
    name : str
        What the tensor is to the node that is being written.

    Raises
    ------
    UnsupportedNodeError
        If they differ in another way.
    """
    tensor = draft.matched(tensor, name)
    known = draft.known.array(tensor.scale)
    if known is None or known.ndim < 2 or known.size == 1:
        return replace(tensor, axis=-1)
    if known.shape[-1] == known.size:
        return replace(flattened(draft, tensor), axis=-1)
    weight = draft.known.array(tensor.name)
    shape = () if weight is None else weight.shape
    if len(shape) < 2 or known.shape != (*shape[:-2], 1, shape[-1]):
        raise UnsupportedNodeError(
            f"scales {tensor.scale!r} have shape {known.shape}, expected one number or one for "
            "each column"
        )
    # all rows of a matrix are one block
    return replace(tensor, axis=-2, block_size=shape[-2])


def flattened(draft: Draft, tensor: Integers) -> Integers:
    """Return a tensor whose scales and zero points, where known, have one dimension."""

    def flat(name: str) -> str:
        array = draft.known.array(name)
        if array is None or array.ndim == 1:
            return name
        return draft.constant(f"{name}/flat", array.reshape(-1))

    return replace(tensor, scale=flat(tensor.scale), zero_point=flat(tensor.zero_point))
