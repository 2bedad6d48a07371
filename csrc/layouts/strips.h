// Strips: the packed weight that the kernels read. A POD view; sparse_engine/packings/strips.py
// makes it.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace se {

// W [out, in] is cut into strips of `height` output rows and K-blocks of `block` input columns.
// A column of a strip is stored when any of its rows is non-zero: a BSR block of r x c is c columns
// of a strip of height r. Kernels take any height; packings/__init__.py packs tall blocks so. Entry
// e = (K-block b, strip s, position) in that order:
//
//               K-block 0      K-block 1
//   strip 0   | a . b . . . | . c . . . . |     height 2: a, b, ... are columns of 2 values
//   strip 1   | . . . d . . | . . . . . . |
//
//   values    a0 a1  b0 b1  d0 d1  c0 c1        [entries, height]
//   columns   0      2      3      1            [entries]: column inside the K-block
//   pointers  0 2 3 4 4                         [blocks * strips + 1]: entries of (b, s) start here
struct Strips {
  static constexpr const char* kPacking = "strips";
  int64_t out, in;          // shape of W
  int64_t height;           // rows of a strip; the last strip is padded with zero rows
  int64_t block;            // columns of a K-block, at most 65536
  int64_t strips;           // ceil(out / height)
  int64_t blocks;           // ceil(in / block), at least 1
  DType dtype;              // of values
  const void* values;       // [entries, height]
  const uint16_t* columns;  // [entries]
  const int32_t* pointers;  // [blocks * strips + 1]
};

// Entries of the first `strips` strips, in all K-blocks.
inline int64_t entries_before(const Strips& w, int64_t strips) {
  int64_t entries = 0;
  for (int64_t b = 0; b < w.blocks; ++b)
    entries += w.pointers[b * w.strips + strips] - w.pointers[b * w.strips];
  return entries;
}

}  // namespace se
