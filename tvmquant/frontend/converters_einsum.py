"""Einsum as products of matrices, two operands at a time.

Before::

    y = Einsum(q, k)                        equation "bihd,bjhd->bhij"

After::

    y = matmul(permute_dims(q, [0, 2, 1, 3]), permute_dims(k, [0, 2, 3, 1]))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import relax

from tvmquant.frontend.context import Context
from tvmquant.frontend.dimensions import Array, Dim, Shape, UnsupportedNodeError, count, show
from tvmquant.frontend.node import Node
from tvmquant.frontend.registry import converter

# What the axes of an ellipsis are called, from its end.
_ELLIPSIS = "0123456789"


@dataclass(frozen=True)
class _Term:
    """An operand: a tensor, or an array where it is constant, and a letter for each axis."""

    value: relax.Expr | Array
    letters: str


@converter("Einsum")
def _convert_einsum(ctx: Context, node: Node) -> relax.Expr:
    """Emit the products from left to right; a constant operand stays the right one."""
    equation = node.text("equation", "").replace(" ", "")
    values: list[relax.Expr | Array] = [
        ctx.weight(index) if ctx.is_constant(index) else ctx.tensor(index)
        for index in range(len(node.inputs))
    ]
    shapes = [_shape(ctx, value) for value in values]
    letters, wanted = _read(equation, [len(shape) for shape in shapes])
    _check_extents(equation, letters, shapes)
    terms = [_Term(value, names) for value, names in zip(values, letters, strict=True)]
    for value in values:
        dtype = value.dtype if isinstance(value, np.ndarray) else value.ty.dtype
        if str(dtype) != "float32":
            raise UnsupportedNodeError(f"it multiplies numbers of type {dtype}, expected float32")
    result, *rest = terms
    for position, term in enumerate(rest):
        later = "".join(other.letters for other in rest[position + 1 :])
        result = _product(ctx, result, term, set(wanted + later))
    result = _permuted(ctx, _summed(ctx, result, set(wanted)), wanted)
    return ctx.embed(result.value) if isinstance(result.value, np.ndarray) else result.value


def _read(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Return the letters of each operand and of the result, an ellipsis replaced by digits."""
    left, arrow, wanted = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise UnsupportedNodeError(f"its equation {equation!r} has not {len(ranks)} operands")
    spelled, most = [], 0
    for term, rank in zip(terms, ranks, strict=True):
        covered = rank - len(term.replace("...", "")) if "..." in term else 0
        if covered < 0 or covered > len(_ELLIPSIS):
            raise UnsupportedNodeError(f"its equation {equation!r} does not fit {rank} axes")
        most = max(most, covered)
        spelled.append(term.replace("...", _ELLIPSIS[len(_ELLIPSIS) - covered :]))
    whole = _ELLIPSIS[len(_ELLIPSIS) - most :]
    if arrow:
        wanted = wanted.replace("...", whole)
    else:
        once = [name for name in sorted(set(left)) if left.count(name) == 1 and name.isalpha()]
        wanted = whole + "".join(once)
    for names, rank in zip(spelled, ranks, strict=True):
        if len(names) != rank:
            raise UnsupportedNodeError(f"its equation {equation!r} does not fit {rank} axes")
        if len(set(names)) < len(names):
            raise UnsupportedNodeError(
                f"its equation {equation!r} takes a diagonal; expected each letter once in a term"
            )
    if len(set(wanted)) < len(wanted) or set(wanted) - set("".join(spelled)):
        raise UnsupportedNodeError(f"its equation {equation!r} has no such result")
    return spelled, wanted


def _check_extents(equation: str, letters: Sequence[str], shapes: Sequence[Shape]) -> None:
    known: dict[str, Dim] = {}
    for names, shape in zip(letters, shapes, strict=True):
        for name, extent in zip(names, shape, strict=True):
            if known.setdefault(name, extent) != extent:
                raise UnsupportedNodeError(
                    f"its operands have shapes {', '.join(map(show, shapes))}, which its equation "
                    f"{equation!r} does not join"
                )


def _product(ctx: Context, left: _Term, right: _Term, kept: set[str]) -> _Term:
    """Multiply two terms and sum over the letters that nothing else needs."""
    left = _summed(ctx, left, kept | set(right.letters))
    right = _summed(ctx, right, kept | set(left.letters))
    if isinstance(left.value, np.ndarray):
        left, right = right, left
    shared = [name for name in left.letters if name in right.letters]
    batch = [name for name in shared if name in kept]
    inner = [name for name in shared if name not in kept]
    rows = [name for name in left.letters if name not in shared]
    columns = [name for name in right.letters if name not in shared]
    if not inner:
        return _outer_product(ctx, left, right)
    extents = {**_extents(ctx, left), **_extents(ctx, right)}
    shape = [tuple(extents[name] for name in names) for names in (batch, rows, inner, columns)]
    left = _permuted(ctx, left, "".join((*batch, *rows, *inner)))
    right = _permuted(ctx, right, "".join((*batch, *inner, *columns)))
    ctx.keep_batch(_shape(ctx, left.value), range(len(batch) + len(rows), len(left.letters)))
    # without a batch in common the rows may stay apart, else they are one axis of the product
    apart = shape[1] if not batch and rows else (count(shape[1]),)
    first = _reshaped(ctx, left.value, (*shape[0], *apart, count(shape[2])))
    second = _reshaped(ctx, right.value, (*shape[0], count(shape[2]), count(shape[3])))
    result = ctx.emit(relax.op.matmul(_tensor(ctx, first), _tensor(ctx, second)))
    letters = "".join((*batch, *rows, *columns))
    return _Term(ctx.reshape(result, (*shape[0], *shape[1], *shape[3])), letters)


def _outer_product(ctx: Context, left: _Term, right: _Term) -> _Term:
    """Multiply element by element where no letter is summed over."""
    letters = left.letters + "".join(name for name in right.letters if name not in left.letters)
    operands = []
    for term in (left, right):
        extents = _extents(ctx, term)
        ordered = _permuted(ctx, term, "".join(name for name in letters if name in term.letters))
        shape = tuple(extents.get(name, 1) for name in letters)
        operands.append(_tensor(ctx, _reshaped(ctx, ordered.value, shape)))
    return _Term(ctx.emit(relax.op.multiply(*operands)), letters)


def _summed(ctx: Context, term: _Term, kept: set[str]) -> _Term:
    """Sum a term over the letters that are not kept."""
    axes = [axis for axis, name in enumerate(term.letters) if name not in kept]
    if not axes:
        return term
    letters = "".join(name for name in term.letters if name in kept)
    if isinstance(term.value, np.ndarray):
        return _Term(term.value.sum(axis=tuple(axes), dtype=np.float32), letters)
    ctx.keep_batch(ctx.shape(term.value), axes)
    return _Term(ctx.emit(relax.op.sum(term.value, axes)), letters)


def _permuted(ctx: Context, term: _Term, letters: str) -> _Term:
    if term.letters == letters:
        return term
    order = [term.letters.index(name) for name in letters]
    if isinstance(term.value, np.ndarray):
        return _Term(term.value.transpose(order), letters)
    return _Term(ctx.emit(relax.op.permute_dims(term.value, order)), letters)


def _reshaped(ctx: Context, value: relax.Expr | Array, shape: Shape) -> relax.Expr | Array:
    if isinstance(value, np.ndarray):
        return value.reshape([int(dim) for dim in shape if isinstance(dim, int)])
    return ctx.reshape(value, shape)


def _tensor(ctx: Context, value: relax.Expr | Array) -> relax.Expr:
    return ctx.embed(value) if isinstance(value, np.ndarray) else value


def _shape(ctx: Context, value: relax.Expr | Array) -> Shape:
    return value.shape if isinstance(value, np.ndarray) else ctx.shape(value)


def _extents(ctx: Context, term: _Term) -> dict[str, Dim]:
    return dict(zip(term.letters, _shape(ctx, term.value), strict=True))
