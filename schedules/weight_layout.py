"""Where a kernel's weight has each number of a layer's: extents in order, as plain values.

A place of the packed array is an index along every `Axis`. Along it move the output channel, the
window row (or tap) or the element of a run; the coordinate is the sum of index times step over the
axes of its kind. Places past the layer's extents are padding and hold 0::

    (2 blocks, 9 windows, 4 steps, 16 lanes, 4 elements) of 32 outputs, 9 windows, runs of 16:
        output  = 16 block + lane;  window = window;  element = 4 step + element
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

OUTPUT: Final = "output"
WINDOW: Final = "window"
ELEMENT: Final = "element"


@dataclass(frozen=True)
class Axis:
    """An axis of the packed array.

    Parameters
    ----------
    of : str
        The coordinate that moves along it: `OUTPUT`, `WINDOW` or `ELEMENT`.
    extent, step : int
        The coordinate moves by ``step`` from each of ``extent`` indices to the next.
    """

    of: str
    extent: int
    step: int = 1


@dataclass(frozen=True)
class WeightLayout:
    """Where a packed weight has each number of an array (outputs, windows, elements).

    Parameters
    ----------
    outputs, windows, elements : int
        Extents of the layer.
    axes : tuple of Axis
        Of the packed array, the slowest first; steps of a kind are a mixed radix.
    """

    outputs: int
    windows: int
    elements: int
    axes: tuple[Axis, ...]

    @property
    def size(self) -> int:
        """Numbers of the packed array, padding included."""
        return math.prod(axis.extent for axis in self.axes)

    def places(self, of: str) -> npt.NDArray[np.int64]:
        """Return what each coordinate of a kind adds to the place."""
        extent = {OUTPUT: self.outputs, WINDOW: self.windows, ELEMENT: self.elements}[of]
        coordinate = np.arange(extent)
        found, stride = np.zeros(extent, np.int64), 1
        for axis in reversed(self.axes):
            if axis.of == of:
                found += coordinate // axis.step % axis.extent * stride
            stride *= axis.extent
        return found

    def unpacked(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return an array (outputs, windows * elements) of a packed one (`size`,)."""
        output, window, element = map(self.places, (OUTPUT, WINDOW, ELEMENT))
        within = (window[:, None] + element).reshape(-1)
        found: npt.NDArray[Any] = values[output[:, None] + within]
        return found

    def dumps(self) -> str:
        """Return text that `loads` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> WeightLayout:
        """Return a layout from text."""
        found = json.loads(text)
        axes: Sequence[dict[str, Any]] = found.pop("axes")
        return cls(**found, axes=tuple(Axis(**axis) for axis in axes))
