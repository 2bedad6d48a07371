// Bits: the packing of the bitmask format. A plain-data view; packers/bits.cc and
// sparse_engine/packings/cpu/bits.py make the buffers.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace se {

//   W = | 5 . . 1 . . . . 9 |     values   5 1 9 2 7, then 64 readable values
//       | . 2 7 . . . . . . |     mask     bit k % 8 of byte k / 8, rows padded to 64 columns
//                                 offsets  0 3 5
struct Bits {
  static constexpr const char* kPacking = "bits";
  int64_t out, in;
  DType dtype;                 // of values
  const void* values;          // [nnz + padding]
  const uint8_t* mask;         // [out][stride]
  int64_t stride;              // bytes of a row of mask: 8 ceil(in / 64)
  const int32_t* offsets;      // [out + 1]: first value of each row
  const float* scales;         // int8 only, [out]
  const int32_t* corrections;  // int8 only, [out]: -128 times the sum of a row's values
};

}  // namespace se
