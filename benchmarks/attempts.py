"""Functions that may fail, each in a process of its own, so that even a crash is a result."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import TypeVar

from benchmarks import latency
from tvmquant.errors import TVMQuantError

Argument = TypeVar("Argument")
Result = TypeVar("Result")

REASON_LENGTH = 300


def attempt(
    function: Callable[[Argument], Result], argument: Argument
) -> tuple[Result | None, str]:
    """Return what a function returns in a fresh process, or None and why it returns nothing."""
    try:
        return latency.in_new_process(function, argument), ""
    except concurrent.futures.BrokenExecutor:
        return None, "ends its process"
    except TVMQuantError as error:
        return None, _short(str(error))
    except Exception as error:  # engines raise what they like
        return None, _short(f"{type(error).__name__}: {error}")


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= REASON_LENGTH else f"{text[:REASON_LENGTH]}..."
