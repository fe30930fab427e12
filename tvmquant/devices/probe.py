"""A small library that tells of a device what TVM's runtime does not.

Its functions follow TVM's calling convention for functions that a library exports (``tvm_ffi``'s
``c_api.h``): ``tvmquant_cpuinfo()`` returns Linux's description of the processor, empty on other
systems; ``tvmquant_clock(kernels)`` registers an instrument for TVM's virtual machine, which times
the calls of the kernels named, one on each line; ``tvmquant_seconds()`` returns what it measured
since, as bytes of doubles. Instruments in Python cannot be called from another machine.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

CPUINFO = "tvmquant_cpuinfo"
CLOCK = "tvmquant_clock"
SECONDS = "tvmquant_seconds"
# The global function that makes the instrument.
INSTRUMENT = "tvmquant.clock"

_SOURCE = """\
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <tvm/ffi/c_api.h>

#define EXPORT(name)                                                                      \\
  TVM_FFI_DLL_EXPORT int __tvm_ffi_##name(void* self, const TVMFFIAny* args, int32_t count, \\
                                          TVMFFIAny* result)

#ifdef __cplusplus
extern "C" {
#endif

static char* names;         // "\\nfirst\\nsecond\\n"
static char* name;          // of a call, between line ends
static size_t longest;      // bytes of `name`
static double* found;
static size_t used, room;
static double started;

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static TVMFFIByteArray text(const TVMFFIAny* value) {
  TVMFFIByteArray bytes;
  if (value->type_index == kTVMFFIRawStr) {
    bytes.data = value->v_c_str;
    bytes.size = strlen(value->v_c_str);
  } else if (value->type_index == kTVMFFISmallStr) {
    bytes.data = value->v_bytes;
    bytes.size = value->small_str_len;
  } else {  // a string object: its header, then its bytes
    bytes = *(TVMFFIByteArray*)((char*)value->v_obj + sizeof(TVMFFIObject));
  }
  return bytes;
}

// Called before and after every call: (function, name, before, result, arguments...).
static int measure(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  result->type_index = kTVMFFIInt;
  result->zero_padding = 0;
  result->v_int64 = 0;  // go on
  if (args[2].v_int64) {
    started = now();
    return 0;
  }
  double elapsed = now() - started;
  TVMFFIByteArray called = text(&args[1]);
  if (called.size + 3 > longest) return 0;  // longer than all that are asked for
  name[0] = '\\n';
  memcpy(name + 1, called.data, called.size);
  name[called.size + 1] = '\\n';
  name[called.size + 2] = 0;
  if (!strstr(names, name)) return 0;
  if (used == room) {
    room = room ? 2 * room : 256;
    found = (double*)realloc(found, room * sizeof(double));
    if (!found) abort();
  }
  found[used++] = elapsed;
  return 0;
}

static int make(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {
  TVMFFIObjectHandle function;
  int status = TVMFFIFunctionCreate(NULL, measure, NULL, &function);
  if (status == 0) {
    result->type_index = kTVMFFIFunction;
    result->zero_padding = 0;
    result->v_obj = (TVMFFIObject*)function;
  }
  return status;
}

EXPORT(tvmquant_clock) {
  TVMFFIByteArray kernels = text(&args[0]);
  TVMFFIByteArray global = {"tvmquant.clock", 14};
  TVMFFIObjectHandle factory;
  longest = kernels.size + 3;
  names = (char*)realloc(names, longest);
  name = (char*)realloc(name, longest);
  if (!names || !name) abort();
  names[0] = '\\n';
  memcpy(names + 1, kernels.data, kernels.size);
  names[kernels.size + 1] = '\\n';
  names[kernels.size + 2] = 0;
  used = 0;
  result->type_index = kTVMFFINone;
  result->zero_padding = 0;
  result->v_int64 = 0;
  int status = TVMFFIFunctionCreate(NULL, make, NULL, &factory);
  return status ? status : TVMFFIFunctionSetGlobal(&global, factory, 1);
}

EXPORT(tvmquant_seconds) {
  TVMFFIByteArray bytes = {(const char*)found, used * sizeof(double)};
  used = 0;
  return TVMFFIBytesFromByteArray(&bytes, result);
}

EXPORT(tvmquant_cpuinfo) {
  static char content[1 << 16];  // of the first processors, where there are many
  FILE* file = fopen("/proc/cpuinfo", "r");
  TVMFFIByteArray bytes = {content, file ? fread(content, 1, sizeof content, file) : 0};
  if (file) fclose(file);
  return TVMFFIStringFromByteArray(&bytes, result);
}

#ifdef __cplusplus
}
#endif
"""


def build_probe(library: Path, linker: str | None) -> None:
    """Compile and link the library.

    Parameters
    ----------
    library : Path
        File to write.
    linker : str, optional
        Cross compiler; None for this machine's own.
    """
    import tvm_ffi
    from tvm.support import cc

    with tempfile.TemporaryDirectory(prefix="tvmquant.") as scratch:
        source = Path(scratch, "probe.c")
        source.write_text(_SOURCE, encoding="utf-8")
        options = ["-O2", *(f"-I{path}" for path in tvm_ffi.libinfo.include_paths())]
        compiler = {} if linker is None else {"cc": linker}
        cc.create_shared(str(library), [str(source)], options=options, **compiler)
