"""Weights as data of the library, and the C function that hands them to TVM's virtual machine.

The function follows TVM's calling convention for functions that a library exports (``tvm_ffi``'s
``c_api.h``): ``tvmquant_weight(index)`` returns a tensor whose data is where the system maps the
library. Such data belongs to the file, so that it is read when it is needed first, shared between
processes, and never copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmquant.devices.cpu import ALIGNMENT

# DLPack's codes
_CODES = {"i": "kDLInt", "u": "kDLUInt", "f": "kDLFloat"}

_SOURCE = """\
#include <stdint.h>
#include <tvm/ffi/c_api.h>

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

TVM_FFI_DLL_EXPORT int __tvm_ffi_{function}(void* self, const TVMFFIAny* args, int32_t num_args,
                                            TVMFFIAny* result) {{
  TVMFFIObjectHandle tensor;
  int status = TVMFFITensorFromDLPack(&weights[args[0].v_int64], 0, 0, &tensor);
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


def write_source(weights: Sequence[npt.NDArray[Any]], function: str, folder: Path) -> Path:
    """Write what is to be compiled into the library.

    Parameters
    ----------
    weights : sequence of arrays
        Of integers or floats.
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
    rank = max(array.ndim for array in weights)
    shapes, tensors = [], []
    with data.open("wb") as file:
        for index, array in enumerate(weights):
            offset = -(-file.tell() // ALIGNMENT) * ALIGNMENT
            file.write(bytes(offset - file.tell()))
            file.write(np.ascontiguousarray(array).data)
            shapes.append(f"  {{{', '.join(map(str, array.shape))}}},")
            code, bits = _CODES[array.dtype.kind], 8 * array.dtype.itemsize
            tensors.append(
                f"  {{{{tvmquant_data + {offset}, {{kDLCPU, 0}}, {array.ndim}, "
                f"{{{code}, {bits}, 1}}, shapes[{index}], 0, 0}}, 0, 0}},"
            )
    source = folder / "weights.c"
    source.write_text(
        _SOURCE.format(
            alignment=ALIGNMENT, data=data, rank=rank, shapes="\n".join(shapes),
            weights="\n".join(tensors), function=function,
        ),
        encoding="utf-8",
    )  # fmt: skip
    return source
