// SELL-P: sliced ELLPACK whose columns are picked by a permutation. A POD view;
// csrc/packers/sellp.cc makes it, sparse_engine/formats/sellp.py holds and checks it.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace se {

// Rows, sorted by their number of non-zeros, are cut into groups of 16: one row a lane. A step
// takes at most one non-zero of each row, all from a window of 32 columns that two registers hold:
//
//   step     window [offset, offset + 32)     lane i:  values[step][i] * x[offset + picks[step][i]]
//
// A lane whose next non-zero lies beyond the window stores a zero. The window starts at the first
// column that any row still waits for, so it may start anywhere.
//
// The idea of slices and sorting is SELL-C-sigma (Kreutzer et al., arXiv 1307.6209); picking from
// registers instead of gathering from memory is what makes it fast for one token.
struct SellP {
  static constexpr const char* kPacking = "sellp";
  int64_t out, in;
  int64_t groups;           // ceil(out / 16)
  DType dtype;              // of values; int8 is widened, activations stay float
  const void* values;       // [steps][16]
  const uint8_t* picks;     // [steps][16], below 32
  const uint16_t* offsets;  // [steps], at most in - 1
  const int32_t* starts;    // [groups + 1]: first step of each group
  const int32_t* rows;      // [groups][16]: row of each lane; `out` stands for none
  const float* scales;      // int8 only, [out]
};

}  // namespace se
