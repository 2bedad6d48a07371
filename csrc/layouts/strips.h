// Strips: the packing of BSR weights. A plain-data view; packers/strips.cc and
// sparse_engine/packings/cpu/strips.py make the buffers.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace se {

// W [out, in] is cut into strips of `height` output rows and K-blocks of `k_block` input
// columns.
// A column of a strip is stored when any of its rows is non-zero: a BSR block of r x c becomes c
// columns of a strip of height r. Kernels accept any height. Entries are ordered by K-block, then
// strip, then column:
//
//               K-block 0      K-block 1
//   strip 0   | a . b . . . | . c . . . . |     height 2: a, b, ... are columns of 2 values
//   strip 1   | . . . d . . | . . . . . . |
//
//   values    a0 a1  b0 b1  d0 d1  c0 c1        [entries, height]
//   columns   0      2      3      1            [entries]: column inside the K-block
//   pointers  0 2 3 4 4                         [k_blocks * strips + 1]: first entry of (b, s)
struct Strips {
  static constexpr const char* kPacking = "strips";
  int64_t out, in;          // shape of W
  int64_t height;           // rows of a strip; the last strip is padded with zero rows
  int64_t k_block;          // columns of a K-block, at most 65536
  int64_t strips;           // ceil(out / height)
  int64_t k_blocks;         // ceil(in / k_block), at least 1
  DType dtype;              // of values
  const void* values;       // [entries, height]
  const uint16_t* columns;  // [entries]
  const int32_t* pointers;  // [k_blocks * strips + 1]
};

// Entries of the first `strips` strips, in all K-blocks.
inline int64_t entries_before(const Strips& w, int64_t strips) {
  int64_t entries = 0;
  for (int64_t b = 0; b < w.k_blocks; ++b)
    entries += w.pointers[b * w.strips + strips] - w.pointers[b * w.strips];
  return entries;
}

}  // namespace se
