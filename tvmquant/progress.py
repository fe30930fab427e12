"""How slow functions tell what they are doing: stages by name, and progress within one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TypeAlias

# Receives what is done and the total, None where that is not known.
Progress: TypeAlias = Callable[[int, "int | None"], None]
# Opens a stage by its name, such as "calibrate", and yields what reports its progress.
Stage: TypeAlias = Callable[[str], AbstractContextManager[Progress]]


@contextlib.contextmanager
def silent_stage(_name: str) -> Iterator[Progress]:
    """Show nothing of a stage."""
    yield lambda _done, _total: None


class Clock:
    """Time stages and hand their progress on.

    Parameters
    ----------
    stage : Stage
        Shows them.

    Attributes
    ----------
    seconds : dict of str to float
        Duration of each stage that has ended, in order.
    """

    def __init__(self, stage: Stage) -> None:
        self.seconds: dict[str, float] = {}
        self._stage = stage

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """Open a stage, as `Stage` says."""
        start = time.perf_counter()
        with self._stage(name) as progress:
            yield progress
        self.seconds[name] = time.perf_counter() - start
