// Runs: the packing of unstructured weights for products with panels. A plain-data view;
// packers/runs.cc makes the buffers, sparse_engine/packings/cpu/runs.py validates them.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace se {

// W [out, in] is cut into chunks of `chunk` output rows and K-blocks of `k_block` columns. Inside
// one (chunk, K-block), rows are sorted by their number of non-zeros and paired: (a, b), where a
// has the fewer non-zeros. A pair consists of three runs, each a loop without branches:
//
//          0 1 2 3 4 5 6 7 8
//   row a  . x x . x . . x .        shared  columns of both rows:             2, 7
//   row b  x . x x . x . x .        own     one column of a, one of b:        (1, 0) (4, 3)
//                                   rest    further columns of b:             5
//
//   columns  2 7  1 0 4 3  5                       [columns]  inside the K-block
//   values   a2 b2 a7 b7  a1 b0 a4 b3  b5          [values]
//   rows     a b                                   [rows]     inside the chunk; see below
//
// Consecutive pairs with the same three lengths form a stretch: their lengths are stored once, and
// the processor predicts the end of every loop. To make stretches longer, `shared` may be rounded
// down; the other shared columns are then stored twice, as own columns. A row without a partner is
// paired with row `chunk`, whose result is discarded.
//
// int8 weights are stored as quads, four adjacent columns each: the matrix becomes
// [out, ceil(in / 4)], and `k_block` counts quads.
struct Stretch {
  uint16_t pairs, shared, own, rest;
};

// The first element of a (chunk, K-block) in each buffer.
struct RunsStart {
  int32_t stretch, row, column, value;
};

struct Runs {
  static constexpr const char *kPacking = "runs", *kHalfPacking = "half_runs";
  int64_t out, in;     // shape of W; `in` counts quads for int8
  int64_t chunk;       // rows of a chunk, at most 65535
  int64_t k_block;     // columns of a K-block, at most 256
  int64_t chunks;      // ceil(out / chunk)
  int64_t k_blocks;    // ceil(in / k_block), at least 1
  DType dtype;         // of values
  const void* values;  // f32, bf16, or quads of int8
  const uint8_t* columns;
  const uint16_t* rows;  // followed by two readable entries, which kernels prefetch
  const Stretch* stretches;
  const RunsStart* starts;  // [chunks * k_blocks + 1]
  // int8 only.
  const float* scales;         // [out]
  const int32_t* corrections;  // [chunks * chunk + 1]: -128 times the sum of a row's values
  // "half_runs" of bf16 only, for products in float16.
  const float* powers;  // [chunks * chunk + 1]: of two, which make the largest value 32 to 64
};

}  // namespace se
