"""What a kernel says of itself: attributes of its function, for graphs, manifests and profiles."""

from __future__ import annotations

from typing import Any

from tvm import tirx

NAME = "tvmquant.kernel"
OPERATION = "tvmquant.operation"
CHANNELS_LAST = "tvmquant.channels_last"


def with_facts(
    function: tirx.PrimFunc, name: str, operation: str, *, channels_last: bool = False
) -> tirx.PrimFunc:
    """Return a kernel that says what it is.

    Parameters
    ----------
    function : PrimFunc
    name : str
        What it is called in a library: operation, types, instruction, tile, geometry.
    operation : str
        What it computes, as reports call it.
    channels_last : bool
        Whether it moves the channels between their place in images (NCHW) and the last one.
    """
    function = function.with_attr(NAME, name).with_attr(OPERATION, operation)
    return function.with_attr(CHANNELS_LAST, 1) if channels_last else function


def is_kernel(function: Any) -> bool:
    """Whether a function is one of these kernels, as opposed to what TVM makes of an operator."""
    return isinstance(function, tirx.PrimFunc) and _attribute(function, NAME) is not None


def name_of(function: tirx.PrimFunc) -> str:
    """Return the name of a kernel."""
    return str(_attribute(function, NAME))


def operation_of(function: Any) -> str:
    """Return what a kernel computes; empty for any other function."""
    return str(_attribute(function, OPERATION)) if is_kernel(function) else ""


def moves_channels(function: Any) -> bool:
    """Whether a kernel moves the channels to or from the last place."""
    return is_kernel(function) and bool(_attribute(function, CHANNELS_LAST))


def _attribute(function: tirx.PrimFunc, name: str) -> Any:
    return function.attrs[name] if function.attrs and name in function.attrs else None
