// SELL-P: sliced ELLPACK whose activations are selected by a register permutation. A plain-data
// view; packers/sellp.cc makes the buffers, sparse_engine/formats/sellp.py validates them.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace se {

// Rows, sorted by their number of non-zeros, are cut into groups of 16: one row per lane. A step
// holds at most one non-zero of each row, all from a window of 32 columns, which two registers
// hold:
//
//   step     window [offset, offset + 32)     lane i:  values[step][i] * x[offset + picks[step][i]]
//
// A lane whose next non-zero lies beyond the window stores a zero. A window starts at the lowest
// column that any row has left, so it may start anywhere.
//
// Slices and sorting are those of SELL-C-sigma (Kreutzer et al., arXiv 1307.6209). Selecting from
// registers replaces the gather from memory; that makes it fast for one token.
struct SellP {
  static constexpr const char* kPacking = "sellp";
  int64_t out, in;
  int64_t groups;           // ceil(out / 16)
  DType dtype;              // of values; int8 is widened, activations stay float
  const void* values;       // [steps][16]
  const uint8_t* picks;     // [steps][16], below 32
  const uint16_t* offsets;  // [steps], at most in - 1
  const int32_t* starts;    // [groups + 1]: first step of each group
  const int32_t* rows;      // [groups][16]: row of each lane; `out` marks an empty lane
  const float* scales;      // int8 only, [out]
};

}  // namespace se
