"""The C function that hands weights to TVM's virtual machine, in parts to be filled in.

`tvmquant.deploy.stored_weights` says what it does, and fills them in.
"""

from __future__ import annotations

from typing import Final

SOURCE: Final = """\
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
UNPACKING: Final = """
static const int16_t levels[][{codes}] = {{
{levels}
}};

static const int all_bits[] = {{{bits}}};

{formats}

/* Values lie in blocks of `steps` rows of `lanes` runs of `inner`. A lane of a block is a channel,
   whose values have one format; behind the last channel comes the first again. */
typedef struct {{
  const char* data;  /* of the library; 0 where the weight is as kernels read it */
  int64_t count;
  int width;  /* of the container, 4 where a byte holds two */
  int64_t inner, lanes, steps, channels;
  const uint8_t* formats;  /* of each channel, as of `levels` and `all_bits` */
}} Packed;

static const Packed packed[] = {{
{packed}
}};

/* A word holds 7 values and up to 7 bits before them; none lies past the data, which end with
   enough zeros. */
#define UNPACK(STORE)                                              \\
  for (int64_t i = 0; i < count;) {{                                \\
    const int format = formats[first + lane];                      \\
    const int bits = all_bits[format];                             \\
    const int16_t* table = levels[format];                         \\
    const uint64_t mask = ((uint64_t)1 << bits) - 1;               \\
    const int64_t end = i + inner;                                 \\
    while (i < end) {{                                              \\
      uint64_t word;                                               \\
      const int64_t stop = i + 7 < end ? i + 7 : end;              \\
      memcpy(&word, in + place / 8, sizeof(word));                 \\
      word >>= place % 8;                                          \\
      place += (uint64_t)(stop - i) * bits;                        \\
      for (; i < stop; ++i, word >>= bits) {{                       \\
        const int16_t value = table[word & mask];                  \\
        STORE;                                                     \\
      }}                                                            \\
    }}                                                              \\
    if (++lane < lanes) continue;                                  \\
    lane = 0;                                                      \\
    if (++step < steps) continue;                                  \\
    step = 0;                                                      \\
    first = first + lanes < channels ? first + lanes : 0;          \\
  }}

static int unpack(const Packed* weight, void* out) {{
  /* copies: what is stored might be parts of these otherwise */
  const char* in = weight->data;
  const uint8_t* formats = weight->formats;
  const int64_t count = weight->count, inner = weight->inner;
  const int64_t lanes = weight->lanes, steps = weight->steps, channels = weight->channels;
  int64_t lane = 0, step = 0, first = 0;
  uint64_t place = 0;
  if (weight->width == 4) {{
    UNPACK(((uint8_t*)out)[i / 2] |= (uint8_t)((value + 8) << (i % 2 * 4)))
  }} else if (weight->width == 8) {{
    UNPACK(((int8_t*)out)[i] = (int8_t)value)
  }} else if (weight->width == 16) {{
    UNPACK(((int16_t*)out)[i] = value)
  }} else {{
    UNPACK(((int32_t*)out)[i] = value)
  }}
  return 0;
}}

{deriving}
/* Two threads may do this at once: what one of them made is kept. */
static int prepare(int64_t index) {{
  void** data = &weights[index].dl_tensor.data;
  void* nothing = 0;
  if (packed[index].data == 0 || __atomic_load_n(data, __ATOMIC_ACQUIRE) != 0) return 0;
  size_t size = (size_t)(packed[index].count * packed[index].width / 8 + {alignment}) &
                ~(size_t)({alignment} - 1);
  void* out = aligned_alloc({alignment}, size);
  if (out != 0) memset(out, 0, size);
  if (out == 0 || {make} != 0) {{
    free(out);
    TVMFFIErrorSetRaisedFromCStr("MemoryError", "no memory for a weight of the network");
    return -1;
  }}
  if (!__atomic_compare_exchange_n(data, &nothing, out, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
    free(out);
  return 0;
}}

__attribute__((destructor)) static void give_back(void) {{
  for (size_t i = 0; i < sizeof(packed) / sizeof(packed[0]); ++i)
    if (packed[i].data != 0) free(weights[i].dl_tensor.data);
}}
"""
# How weights follow from others.
DERIVING: Final = """
/* Where an array (outputs, windows, elements) has its numbers: `schedules.weight_layout`. */
typedef struct {{
  int outputs, windows, elements, axes;
  struct {{ int of, extent, step; }} axis[{axes}];  /* of: 0 outputs, 1 windows, 2 elements */
}} Layout;

static const Layout layouts[] = {{
{layouts}
}};

typedef struct {{
  const Layout* from;  /* 0 where the weight is its own */
  const Layout* to;
  int bits;  /* of each value of the data, */
  const int16_t* levels;  /* which stands for one of these; 0 where it is a number itself */
  const int16_t* multiplier;
  const int8_t* shift;  /* negative where the result is to be negated */
  int qmax;
}} Derivation;

static const Derivation derivations[] = {{
{derivations}
}};

static int64_t place(const Layout* layout, int of, int64_t at) {{
  int64_t found = 0, stride = 1;
  for (int i = layout->axes - 1; i >= 0; --i) {{
    if (layout->axis[i].of == of)
      found += at / layout->axis[i].step % layout->axis[i].extent * stride;
    stride *= layout->axis[i].extent;
  }}
  return found;
}}

static int64_t place_within(const Layout* layout, int64_t at) {{
  return place(layout, 1, at / layout->elements) + place(layout, 2, at % layout->elements);
}}

/* Value i lies in the low bits of a word; what is past it is not looked at. */
static int value_at(const Packed* weight, const Derivation* how, int64_t i) {{
  uint64_t word;
  memcpy(&word, weight->data + i * how->bits / 8, sizeof(word));
  word = word >> i * how->bits % 8 << (64 - how->bits);
  if (how->levels == 0) return (int)((int64_t)word >> (64 - how->bits));
  return how->levels[word >> (64 - how->bits)];
}}

static void put(int width, void* out, int64_t i, int value) {{
  uint8_t* byte = (uint8_t*)out + i / 2;
  const int half = i % 2 * 4;
  if (width == 4)
    *byte = (uint8_t)((*byte & (0xf0 >> half)) | (value + 8) << half);
  else if (width == 8)
    ((int8_t*)out)[i] = (int8_t)value;
  else if (width == 16)
    ((int16_t*)out)[i] = (int16_t)value;
  else
    ((int32_t*)out)[i] = value;
}}

static int derive(const Packed* weight, const Derivation* how, void* out) {{
  const int width = weight->width, qmax = how->qmax, outputs = how->to->outputs;
  const int64_t within = (int64_t)how->to->windows * how->to->elements;
  int64_t* places = (int64_t*)malloc((size_t)within * 2 * sizeof(int64_t));
  if (places == 0) return -1;
  for (int64_t i = 0; i < within; ++i) {{
    places[2 * i] = place_within(how->from, i);
    places[2 * i + 1] = place_within(how->to, i);
  }}
  if (width == 4) memset(out, 0x88, (size_t)weight->count / 2);  /* zeros */
  for (int o = 0; o < outputs; ++o) {{
    const int64_t from = place(how->from, 0, o), to = place(how->to, 0, o);
    const int negated = how->shift[o] < 0, multiplier = how->multiplier[o];
    const int shift = negated ? -how->shift[o] : how->shift[o];
    for (int64_t i = 0; i < within; ++i) {{
      int value = value_at(weight, how, from + places[2 * i]) * multiplier;
      value = (value + (1 << (shift - 1))) >> shift;
      value = value > qmax ? qmax : value < -qmax ? -qmax : value;
      put(width, out, to + places[2 * i + 1], negated ? -value : value);
    }}
  }}
  free(places);
  return 0;
}}

static int make(int64_t index, void* out) {{
  const Derivation* how = &derivations[index];
  return how->from == 0 ? unpack(&packed[index], out) : derive(&packed[index], how, out);
}}
"""
