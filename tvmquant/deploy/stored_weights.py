"""Weights as data of the library, and the C function that hands them to TVM's virtual machine.

The function follows TVM's calling convention for functions that a library exports (``tvm_ffi``'s
``c_api.h``): ``tvmquant_weight(index)`` returns a tensor whose data is where the system maps the
library. Such data belongs to the file, so that it is read when it is needed first, shared between
processes, and never copied.

Of a weight that is packed (`tvmquant.formats`) it returns a copy, which the first call makes and
all others share: whoever loads the library, from Python or C++, calls nothing else. The copy is
given back when the library is unloaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmquant import formats
from tvmquant.devices.cpu import ALIGNMENT

# DLPack's codes
_CODES = {"i": "kDLInt", "u": "kDLUInt", "f": "kDLFloat"}

_SOURCE = """\
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "weights are stored for little-endian processors"
#endif

__asm__(
    ".pushsection .rodata.tvmquant_weights, \\"a\\", %progbits\\n"
    ".balign {alignment}\\n"
    ".hidden tvmquant_data\\n"
    ".globl tvmquant_data\\n"
    "tvmquant_data:\\n"
    ".incbin \\"{data}\\"\\n"
    ".popsection\\n");

#ifdef __cplusplus
extern "C" {{
#endif

extern char tvmquant_data[] __attribute__((visibility("hidden")));

static int64_t shapes[][{rank}] = {{
{shapes}
}};

static DLManagedTensor weights[] = {{
{weights}
}};
{unpacking}
TVM_FFI_DLL_EXPORT int __tvm_ffi_{function}(void* self, const TVMFFIAny* args, int32_t num_args,
                                            TVMFFIAny* result) {{
  TVMFFIObjectHandle tensor;
  int64_t index = args[0].v_int64;
{prepare}  int status = TVMFFITensorFromDLPack(&weights[index], 0, 0, &tensor);
  if (status == 0) {{
    result->type_index = kTVMFFITensor;
    result->zero_padding = 0;
    result->v_obj = (TVMFFIObject*)tensor;
  }}
  return status;
}}

#ifdef __cplusplus
}}
#endif
"""

# How a packed weight becomes what kernels read.
_UNPACKING = """
static const int16_t levels[][{codes}] = {{
{levels}
}};

typedef struct {{
  const char* data;  /* of the library; 0 where the weight is not packed */
  int64_t count;
  int bits;
  int width;  /* of the container, 4 where a byte holds two */
  const int16_t* levels;
}} Packed;

static const Packed packed[] = {{
{packed}
}};

/* Values i to end - 1 lie in the low bits of a word; none lies past the data, which end with
   enough zeros. */
#define UNPACK(STORE)                                         \\
  for (int64_t i = 0; i < count; i += 8, in += bits) {{        \\
    uint64_t word;                                            \\
    int64_t end = i + 8 < count ? i + 8 : count;              \\
    memcpy(&word, in, sizeof(word));                          \\
    for (int64_t j = i; j < end; ++j, word >>= bits) {{        \\
      int16_t value = table[word & mask];                     \\
      STORE;                                                  \\
    }}                                                         \\
  }}

static void unpack(const Packed* weight, void* out) {{
  /* copies: what is stored might be parts of these otherwise */
  const char* in = weight->data;
  const int bits = weight->bits;
  const int64_t count = weight->count;
  const uint64_t mask = ((uint64_t)1 << bits) - 1;
  int16_t table[256];
  memcpy(table, weight->levels, sizeof(int16_t) << bits);
  if (weight->width == 4) {{
    UNPACK(((uint8_t*)out)[j / 2] |= (uint8_t)((value + 8) << (j % 2 * 4)))
  }} else if (weight->width == 8) {{
    UNPACK(((int8_t*)out)[j] = (int8_t)value)
  }} else if (weight->width == 16) {{
    UNPACK(((int16_t*)out)[j] = value)
  }} else {{
    UNPACK(((int32_t*)out)[j] = value)
  }}
}}

/* Two threads may do this at once: what one of them made is kept. */
static int prepare(int64_t index) {{
  void** data = &weights[index].dl_tensor.data;
  void* nothing = 0;
  if (packed[index].data == 0 || __atomic_load_n(data, __ATOMIC_ACQUIRE) != 0) return 0;
  size_t size = (size_t)(packed[index].count * packed[index].width / 8 + {alignment}) &
                ~(size_t)({alignment} - 1);
  void* out = aligned_alloc({alignment}, size);
  if (out == 0) {{
    TVMFFIErrorSetRaisedFromCStr("MemoryError", "no memory for a weight of the network");
    return -1;
  }}
  memset(out, 0, size);
  unpack(&packed[index], out);
  if (!__atomic_compare_exchange_n(data, &nothing, out, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
    free(out);
  return 0;
}}

__attribute__((destructor)) static void give_back(void) {{
  for (size_t i = 0; i < sizeof(packed) / sizeof(packed[0]); ++i)
    if (packed[i].data != 0) free(weights[i].dl_tensor.data);
}}
"""
_PREPARE = "  if (prepare(index) != 0) return -1;\n"
# Bytes that the last packed weight's last word may reach past it.
_WORD = 8


@dataclass(frozen=True)
class StoredWeight:
    """What the library holds of a weight.

    Parameters
    ----------
    data : array
        The weight of integers or floats; where it is packed, its bytes.
    shape : tuple of int
    dtype : str
        As kernels read it.
    format : str
        Name of the format that is packed; empty where the weight is as kernels read it.
    width : int
        Bits that kernels read each packed value in: 4, 8, 16 or 32. Two values of 4 bits share a
        byte, the first in its lower half, each 8 more than it is.
    """

    data: npt.NDArray[Any]
    shape: tuple[int, ...]
    dtype: str
    format: str = ""
    width: int = 0

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
    shapes, tensors, packed = [], [], []
    names = sorted({weight.format for weight in weights} - {""})
    with data.open("wb") as file:
        for index, weight in enumerate(weights):
            offset = -(-file.tell() // ALIGNMENT) * ALIGNMENT
            file.write(bytes(offset - file.tell()))
            file.write(np.ascontiguousarray(weight.data).data)
            shapes.append(f"  {{{', '.join(map(str, weight.shape))}}},")
            dtype, place = np.dtype(weight.dtype), f"tvmquant_data + {offset}"
            tensors.append(
                f"  {{{{{'0' if weight.format else place}, {{kDLCPU, 0}}, {len(weight.shape)}, "
                f"{{{_CODES[dtype.kind]}, {8 * dtype.itemsize}, 1}}, shapes[{index}], 0, 0}}, 0, "
                "0},"
            )
            packed.append(_described(weight, place, names))
        file.write(bytes(_WORD))
    unpacking = _UNPACKING.format(
        alignment=ALIGNMENT,
        packed="\n".join(packed),
        levels="\n".join(map(_levels, names)),
        codes=1 << max((formats.parse(name).bits for name in names), default=0),
    )
    source = folder / "weights.c"
    source.write_text(
        _SOURCE.format(
            alignment=ALIGNMENT, data=data, rank=rank, shapes="\n".join(shapes),
            weights="\n".join(tensors), function=function,
            unpacking=unpacking if names else "", prepare=_PREPARE if names else "",
        ),
        encoding="utf-8",
    )  # fmt: skip
    return source


def _described(weight: StoredWeight, place: str, names: Sequence[str]) -> str:
    """Return an element of the array ``packed``."""
    if not weight.format:
        return "  {0, 0, 0, 0, 0},"
    values = math.prod(weight.shape) * 8 * np.dtype(weight.dtype).itemsize // weight.width
    bits = formats.parse(weight.format).bits
    levels = f"levels[{names.index(weight.format)}]"
    return f"  {{{place}, {values}, {bits}, {weight.width}, {levels}}},"


def _levels(name: str) -> str:
    """Return the value of every code of a format, in C."""
    held = formats.parse(name)
    codes = np.arange(1 << held.bits, dtype=np.uint8)
    values = [int(held.unpack(code.reshape(1), (1,))[0]) for code in codes]
    return f"  {{{', '.join(map(str, values))}}},"
