// Groups: the packing of the N:M format. A plain-data view; packers/groups.cc and
// sparse_engine/packings/cpu/groups.py make the buffers.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace se {

// Every group of `of` columns has `keep` values, where of = 2 keep or 4 keep. A step is 16 values,
// which belong to a span of 32 or 64 columns. Value i of a step belongs to column
//
//   span * step + of * (i / keep) + position,     position: `bits` = log2(of) bits, lowest first
//
// so the positions of a step take 2 * bits bytes. Rows are padded with zeros to whole steps.
struct Groups {
  static constexpr const char* kPacking = "groups";
  int64_t out, in;
  int64_t keep, of, bits;    // bits 1 to 4
  int64_t steps;             // of a row
  DType dtype;               // of values; int8 is widened, activations stay float
  const void* values;        // [out][16 steps]
  const uint8_t* positions;  // [out][2 bits steps], then 4 readable bytes
  const float* scales;       // int8 only, [out]
  int64_t span() const { return 16 * of / keep; }
};

}  // namespace se
