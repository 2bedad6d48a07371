// Groups: the N:M format as the kernels read it. A POD view; sparse_engine/packings/groups.py makes
// and checks it.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace se {

// Every group of `of` columns has `keep` values, of = 2 keep or 4 keep, so 16 values belong to a
// span of 32 or 64 columns: a step. Value i of a step stands at column
//
//   span * step + of * (i / keep) + position,     position: `bits` = log2(of) bits, lowest first
//
// so a row of positions has 2 bits bytes a step. Rows are padded with zeros to whole steps.
struct Groups {
  static constexpr const char* kPacking = "groups";
  int64_t out, in;
  int64_t keep, of, bits;    // bits 1 to 4
  int64_t steps;             // of a row
  DType dtype;               // of values; int8 is widened, activations stay float
  const void* values;        // [out][16 steps]
  const uint8_t* positions;  // [out][2 bits steps], then 4 bytes that may be read
  const float* scales;       // int8 only, [out]
  int64_t span() const { return 16 * of / keep; }
};

}  // namespace se
