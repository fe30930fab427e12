"""Weights as data of the library, and the C function that hands them to TVM's virtual machine.

The function follows TVM's calling convention for functions that a library exports (``tvm_ffi``'s
``c_api.h``): ``tvmquant_weight(index)`` returns a tensor whose data is where the system maps the
library. Such data belongs to the file, so that it is read when it is needed first, shared between
processes, and never copied.

Of a weight that is packed (`tvmquant.formats`), or follows from another
(`tvmquant.passes.derived_weights`), it returns a copy, which the first call makes and all others
share: whoever loads the library, from Python or C++, calls nothing else. The copy is given back
when the library is unloaded.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmquant import formats
from tvmquant.deploy.weight_source import DERIVING, SOURCE, UNPACKING
from tvmquant.devices.cpu import ALIGNMENT
from tvmquant.formats import Uniform
from tvmquant.schedules.weight_layout import ELEMENT, OUTPUT, WINDOW, WeightLayout

# DLPack's codes
_CODES = {"i": "kDLInt", "u": "kDLUInt", "f": "kDLFloat"}

_PREPARE = "  if (prepare(index) != 0) return -1;\n"
# Bytes that the last packed weight's last word may reach past it.
_WORD = 8


@dataclass(frozen=True)
class Derived:
    """How a weight follows from another of the library.

    Parameters
    ----------
    source : int
        Which that is; it is no derived one.
    source_format : str
        In which its bytes hold values; empty where they are signed integers of its type.
    source_layout, layout : WeightLayout
        Of the other and of this.
    qmax : int
        Greatest level.
    """

    source: int
    source_format: str
    source_layout: WeightLayout
    layout: WeightLayout
    qmax: int


@dataclass(frozen=True)
class Channels:
    """The widths of a weight's channels, and where their values are.

    Parameters
    ----------
    widths : tuple of int
        2 to 8.
    inner, lanes, steps : int
        Values lie in blocks of `steps` rows of `lanes` runs of `inner`. A lane of a block is a
        channel; behind the last channel comes the first again.
    """

    widths: tuple[int, ...]
    inner: int
    lanes: int
    steps: int


@dataclass(frozen=True)
class StoredWeight:
    """What the library holds of a weight.

    Parameters
    ----------
    data : array
        The weight of integers or floats; where it is packed, its bytes; where it is derived, a
        multiplier of 16 bits for each output, then a shift of 8 bits for each, as bytes.
    shape : tuple of int
    dtype : str
        As kernels read it.
    format : str
        Name of the format that is packed; empty where the weight is as kernels read it.
    width : int
        Bits that kernels read each value in that is packed or derived: 4, 8, 16 or 32. Two values
        of 4 bits share a byte, the first in its lower half, each 8 more than it is.
    derived : Derived, optional
    channels : Channels, optional
        Where channels are packed each at its width (`tvmquant.formats.pack_widths`).
    """

    data: npt.NDArray[Any]
    shape: tuple[int, ...]
    dtype: str
    format: str = ""
    width: int = 0
    derived: Derived | None = None
    channels: Channels | None = None

    @property
    def is_packed(self) -> bool:
        """Whether it is to be unpacked."""
        return bool(self.format or self.channels)

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats of its channels; one, where it is the same for all."""
        if self.channels is None:
            return (self.format,)
        return tuple(Uniform(bits, signed=True).name for bits in self.channels.widths)

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> StoredWeight:
        """Return what `tvmquant.passes.store_weights` says of a weight."""
        derived = None
        if "source" in found:
            derived = Derived(
                int(found["source"]),
                str(found["source_format"]),
                WeightLayout.loads(str(found["source_layout"])),
                WeightLayout.loads(str(found["layout"])),
                int(found["qmax"]),
            )
        channels = None
        if "widths" in found:
            channels = Channels(tuple(map(int, found["widths"])), *map(int, found["runs"]))
        shape = tuple(int(extent) for extent in found["shape"])
        return cls(
            found["data"].numpy(), shape, str(found["dtype"]), str(found["format"]),
            int(found["width"]), derived, channels,
        )  # fmt: skip

    @classmethod
    def plain(cls, array: npt.NDArray[Any]) -> StoredWeight:
        """Return what stores an array as it is."""
        return cls(array, array.shape, str(array.dtype))


def write_source(weights: Sequence[StoredWeight], function: str, folder: Path) -> Path:
    """Write what is to be compiled into the library.

    Parameters
    ----------
    weights : sequence of StoredWeight
    function : str
        The name by which the virtual machine calls.
    folder : path
        Where to write the source and the data it includes.

    Returns
    -------
    path
        Of a source that C and C++ compilers of ELF targets take.
    """
    data = folder / "weights.bin"
    rank = max(len(weight.shape) for weight in weights)
    places: list[str] = []
    with data.open("wb") as file:
        for weight in weights:
            offset = -(-file.tell() // ALIGNMENT) * ALIGNMENT
            file.write(bytes(offset - file.tell()))
            file.write(np.ascontiguousarray(weight.data).data)
            places.append(f"tvmquant_data + {offset}")
        file.write(bytes(_WORD))
    making = _making(weights, places)
    source = folder / "weights.c"
    source.write_text(
        SOURCE.format(
            alignment=ALIGNMENT, data=data, rank=rank,
            shapes="\n".join(f"  {{{', '.join(map(str, w.shape))}}}," for w in weights),
            weights="\n".join(
                _tensor(index, weight, place)
                for index, (weight, place) in enumerate(zip(weights, places, strict=True))
            ),
            function=function, unpacking=making, prepare=_PREPARE if making else "",
        ),
        encoding="utf-8",
    )  # fmt: skip
    return source


def _tensor(index: int, weight: StoredWeight, place: str) -> str:
    """Return an element of the array ``weights``."""
    dtype, is_made = np.dtype(weight.dtype), weight.is_packed or weight.derived
    return (
        f"  {{{{{'0' if is_made else place}, {{kDLCPU, 0}}, {len(weight.shape)}, "
        f"{{{_CODES[dtype.kind]}, {8 * dtype.itemsize}, 1}}, shapes[{index}], 0, 0}}, 0, 0}},"
    )


def _making(weights: Sequence[StoredWeight], places: Sequence[str]) -> str:
    """Return what makes weights of packed and derived ones; empty where there are none."""
    used = [(w.derived.source_format,) if w.derived else w.formats for w in weights]
    names = sorted(set(itertools.chain(*used)) - {""})
    derived = [weight.derived for weight in weights]
    if not names and not any(derived):
        return ""
    deriving = _deriving(weights, places, names) if any(derived) else ""
    return UNPACKING.format(
        alignment=ALIGNMENT,
        packed="\n".join(
            _described(
                weight,
                places[weight.derived.source] if weight.derived else place,
                f"formats_{index}",
            )
            for index, (weight, place) in enumerate(zip(weights, places, strict=True))
        ),
        bits=", ".join(str(formats.parse(name).bits) for name in names) or "0",
        formats="\n".join(
            f"static const uint8_t formats_{index}[] = "
            f"{{{', '.join(str(names.index(name)) for name in weight.formats)}}};"
            for index, weight in enumerate(weights)
            if weight.is_packed
        ),
        levels="\n".join(map(_levels, names)) or "  {0},",
        codes=1 << max((formats.parse(name).bits for name in names), default=0),
        deriving=deriving,
        make="make(index, out)" if deriving else "unpack(&packed[index], out)",
    )


def _deriving(weights: Sequence[StoredWeight], places: Sequence[str], names: Sequence[str]) -> str:
    """Return what makes weights of others."""
    found = [weight.derived for weight in weights]
    layouts = list(
        dict.fromkeys(x for d in found if d is not None for x in (d.source_layout, d.layout))
    )
    elements = []
    for derived, place in zip(found, places, strict=True):
        if derived is None:
            elements.append("  {0, 0, 0, 0, 0, 0, 0},")
            continue
        source = weights[derived.source]
        named = derived.source_format
        bits = formats.parse(named).bits if named else 8 * np.dtype(source.dtype).itemsize
        levels = f"levels[{names.index(named)}]" if named else "0"
        shifts = 2 * derived.layout.outputs
        elements.append(
            f"  {{&layouts[{layouts.index(derived.source_layout)}], "
            f"&layouts[{layouts.index(derived.layout)}], {bits}, {levels}, "
            f"(const int16_t*)({place}), (const int8_t*)({place} + {shifts}), {derived.qmax}}},"
        )
    return DERIVING.format(
        axes=max(len(layout.axes) for layout in layouts),
        layouts="\n".join(map(_layout, layouts)),
        derivations="\n".join(elements),
    )


def _layout(layout: WeightLayout) -> str:
    """Return an element of the array ``layouts``."""
    kinds = (OUTPUT, WINDOW, ELEMENT)
    axes = [f"{{{kinds.index(x.of)}, {x.extent}, {x.step}}}" for x in layout.axes]
    extents = f"{layout.outputs}, {layout.windows}, {layout.elements}, {len(axes)}"
    return f"  {{{extents}, {{{', '.join(axes)}}}}},"


def _described(weight: StoredWeight, place: str, formats_of: str) -> str:
    """Return an element of the array ``packed``."""
    if not weight.is_packed and weight.derived is None:
        return "  {0, 0, 0, 0, 0, 0, 0, 0},"
    count = math.prod(weight.shape) * 8 * np.dtype(weight.dtype).itemsize // weight.width
    if weight.derived is not None:
        return f"  {{{place}, {count}, {weight.width}, 0, 0, 0, 0, 0}},"
    where = weight.channels or Channels((0,), count, 1, 1)
    fields = (place, count, weight.width, where.inner, where.lanes, where.steps,
              len(where.widths), formats_of)  # fmt: skip
    return f"  {{{', '.join(map(str, fields))}}},"


def _levels(name: str) -> str:
    """Return the value of every code of a format, in C."""
    held = formats.parse(name)
    codes = np.arange(1 << held.bits, dtype=np.uint8)
    values = [int(held.unpack(code.reshape(1), (1,))[0]) for code in codes]
    return f"  {{{', '.join(map(str, values))}}},"
