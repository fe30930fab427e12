"""Torch functions that only move, repeat or select values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import tvm_ffi
from torch import Tensor
from tvm import relax

from tvmquant.errors import UnsupportedModelError
from tvmquant.twin.attributes import integers, is_integer, number, static_shape

Maker = Callable[[relax.Call], Callable[..., Any]]


def _concat(call: relax.Call) -> Callable[..., Tensor]:
    axis = int(call.attrs.axis or 0) % len(call.ty.shape.values)

    def concat(*tensors: Tensor) -> Tensor:
        batch = max(len(x) for x in tensors)  # a constant's is 1 (`_broadcast_to`)
        if axis == 0:
            return torch.cat(tensors, axis)
        whole = [x if len(x) == batch else x.expand(batch, *x.shape[1:]) for x in tensors]
        return torch.cat(whole, axis)

    return concat


def _split(call: relax.Call) -> Callable[[Tensor], tuple[Tensor, ...]]:
    axis, where = int(call.attrs.axis), call.attrs.indices_or_sections
    if is_integer(where):
        sections = int(where)
        # As Relax does: the last part is the smaller one.
        return lambda x: torch.split(x, -(-x.shape[axis] // sections), axis)
    indices = integers(where)
    return lambda x: torch.tensor_split(x, indices, axis)


def _strided_slice(call: relax.Call) -> Callable[[Tensor], Tensor]:
    extents = list(call.args[0].ty.shape.values)
    axes, begins, ends, *rest = ([*argument.fields] for argument in call.args[1:])
    strides = rest[0] if rest else [1] * len(axes)
    slices = [slice(None)] * len(extents)
    for axis, begin, end, stride in zip(axes, begins, ends, strides, strict=True):
        index = int(number(axis)) % len(extents)
        stop = None if tvm_ffi.structural_equal(end, extents[index]) else _bound(end)
        slices[index] = slice(_bound(begin), stop, _bound(stride))
    if all(s.step is None or s.step > 0 for s in slices):
        key = tuple(slices)
        return lambda x: x[key]

    def reversing_slice(x: Tensor) -> Tensor:
        for axis, part in enumerate(slices):
            index = torch.arange(x.shape[axis]).tolist()[part]
            x = x.index_select(axis, torch.tensor(index, device=x.device))
        return x

    return reversing_slice


def _bound(expr: Any) -> int:
    if not is_integer(expr):
        raise UnsupportedModelError(f"the slice bound {expr} depends on the input's shape")
    return int(expr)


def _reshape(call: relax.Call) -> Callable[[Tensor], Tensor]:
    shape = static_shape(call.args[1].values)
    return lambda x: x.reshape(shape)


def _broadcast_to(call: relax.Call) -> Callable[[Tensor], Tensor]:
    """Broadcast to a shape, but for the batch: what reads the result repeats it along that."""
    shape = static_shape(call.args[1].values)
    added = len(shape) - len(call.args[0].ty.shape.values)
    # an axis that the operand has not cannot stay as it is
    shape[:added] = [max(extent, 1) for extent in shape[:added]]
    return lambda x: x.expand(shape)


def _permute_dims(call: relax.Call) -> Callable[[Tensor], Tensor]:
    if call.attrs.axes is None:
        return lambda x: x.permute(*reversed(range(x.ndim)))
    axes = integers(call.attrs.axes)
    return lambda x: x.permute(axes)


def _squeeze(call: relax.Call) -> Callable[[Tensor], Tensor]:
    if call.attrs.axis is None:
        # A symbolic batch that happens to be 1 stays.
        extents = static_shape(call.args[0].ty.shape.values)
        axes = tuple(axis for axis, extent in enumerate(extents) if extent == 1)
    else:
        axes = tuple(integers(call.attrs.axis))
    return lambda x: torch.squeeze(x, axes)


def _expand_dims(call: relax.Call) -> Callable[[Tensor], Tensor]:
    rank = len(call.args[0].ty.shape.values) + len(call.attrs.axis)
    axes = sorted(axis % rank for axis in integers(call.attrs.axis))
    return lambda x: functools.reduce(torch.unsqueeze, axes, x)


def _flip(call: relax.Call) -> Callable[[Tensor], Tensor]:
    axis = int(call.attrs.axis)
    return lambda x: torch.flip(x, [axis])


def _take(call: relax.Call) -> Callable[[Tensor, Tensor], Tensor]:
    axis = int(call.attrs.axis or 0) % len(call.args[0].ty.shape.values)

    def take(x: Tensor, index: Tensor) -> Tensor:
        positions = index.long() % x.shape[axis]
        taken = x.index_select(axis, positions.flatten())
        return taken.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])

    return take


def _tile(call: relax.Call) -> Callable[[Tensor], Tensor]:
    repeats = integers(call.attrs.repeats)
    return lambda x: x.tile(repeats)


def _full(call: relax.Call) -> Callable[[Tensor], Tensor]:
    shape = static_shape(call.args[0].values)
    if -1 in shape:
        raise UnsupportedModelError(f"fills the unknown shape {call.args[0]}; expected a known one")
    return lambda value: value.expand(shape)


STRUCTURAL_OPERATORS: dict[str, Maker] = {
    "relax.concat": _concat,
    "relax.split": _split,
    "relax.strided_slice": _strided_slice,
    "relax.reshape": _reshape,
    "relax.flatten": lambda _call: torch.flatten,
    "relax.nn.batch_flatten": lambda _call: functools.partial(torch.flatten, start_dim=1),
    "relax.broadcast_to": _broadcast_to,
    "relax.permute_dims": _permute_dims,
    "relax.squeeze": _squeeze,
    "relax.expand_dims": _expand_dims,
    "relax.take": _take,
    "relax.flip": _flip,
    "relax.tile": _tile,
    "relax.full": _full,
}
