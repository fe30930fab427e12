"""The one place that changes TVM's behaviour, and why.

TVMScript's decorators call ``inspect.stack()``, which reads and searches the source file of every
frame on the stack: 0.1 s for each ``@T.prim_func``, and 23 s for TVM's own ``tensor_intrin``
package. They look at the frames' local variables, and at the source line of one frame only.
`speed_up_parser` hands these TVM modules an ``inspect`` whose ``stack`` reads no more than that.
The ``inspect`` module itself, which everybody else uses, is not changed.
"""

from __future__ import annotations

import importlib
import inspect
import linecache
import sys
import types
from typing import Any

_PARSER_MODULES = (
    "tvm.script.parser.ir.entry",
    "tvm.tirx.script.parser.entry",
    "tvm.tirx.script.builder.ir",
    "tvm.relax.script.parser.entry",
)
# `is_defined_in_class` looks for "@I.ir_module" or "class" in the line of the frame at this depth.
_CLASS_DEPTH = 2


class _FastInspect(types.ModuleType):
    """The ``inspect`` module with another ``stack``."""

    def __getattr__(self, name: str) -> Any:
        return getattr(inspect, name)

    @staticmethod
    def stack(context: int = 1) -> list[inspect.FrameInfo]:
        """Return the stack of the caller, with source text at one depth only."""
        del context
        frames: list[inspect.FrameInfo] = []
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None:
            code, lines = frame.f_code, None
            if len(frames) == _CLASS_DEPTH:
                line = linecache.getline(code.co_filename, frame.f_lineno, frame.f_globals)
                lines = [line] if line else None
            frames.append(
                inspect.FrameInfo(
                    frame,
                    code.co_filename,
                    frame.f_lineno,
                    code.co_name,
                    lines,
                    None if lines is None else 0,
                )
            )
            frame = frame.f_back
        return frames


def speed_up_parser() -> None:
    """Make TVMScript parsing fast; calling it again changes nothing."""
    for name in _PARSER_MODULES:
        namespace = vars(importlib.import_module(name))
        if not isinstance(namespace["inspect"], _FastInspect):
            namespace["inspect"] = _FastInspect("inspect")
