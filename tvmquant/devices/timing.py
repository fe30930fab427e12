"""Times of functions of loaded modules, here or on a device, by the clock of TVM's runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def timed(
    module: Any, function: str, device: Any, *, number: int = 1, repeat: int = 1,
    min_repeat_ms: int = 0,
) -> Callable[..., list[float]]:  # fmt: skip
    """Return what calls a function and returns seconds: the mean of a call, for every repeat.

    Parameters
    ----------
    module : Module
        Of this process or of an RPC session.
    function : str
        Name in the module; it is called once before the clock starts.
    device : Device
        Where the function's arguments are.
    number : int
        Calls in each repeat.
    repeat : int
    min_repeat_ms : int
        The calls in a repeat become so many that it takes this long.
    """
    evaluator = module.time_evaluator(
        function, device, number=number, repeat=repeat, min_repeat_ms=min_repeat_ms
    )

    def seconds(*arguments: Any) -> list[float]:
        return [float(s) for s in evaluator(*arguments).results]

    return seconds


def processor_of(session: Any) -> Any:
    """Return the processor that an RPC session runs code on, to place tensors there."""
    return session.cpu(0)
