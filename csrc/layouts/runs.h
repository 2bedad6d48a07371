// Runs: the packed weight of an unstructured pattern. A POD view; csrc/packers/runs.cc makes it,
// sparse_engine/packings/runs.py holds and checks it.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace se {

// W [out, in] is cut into chunks of `chunk` output rows and K-blocks of `block` columns. Inside one
// (chunk, K-block) rows are sorted by their number of non-zeros and taken in pairs (a, b), with the
// fewer non-zeros in a. A pair is three runs, each a loop without branches:
//
//          0 1 2 3 4 5 6 7 8
//   row a  . x x . x . . x .        shared  columns of both rows:             2, 7
//   row b  x . x x . x . x .        own     one of a beside one of b:         (1, 0) (4, 3)
//                                   rest    what b has more than a:           5
//
//   columns  2 7  1 0 4 3  5                       [columns]  inside the K-block
//   values   a2 b2 a7 b7  a1 b0 a4 b3  b5          [values]
//   rows     a b                                   [rows]     inside the chunk; see below
//
// Consecutive pairs with the same three lengths are a stretch: lengths are stored once, and the
// processor predicts every loop's end. `shared` may be rounded down for that: a shared column may
// always be stored twice as own ones. A row of a chunk that is alone is paired with row `chunk`, a
// place for results that nobody reads.
//
// int8 takes four columns as one: W' [out, ceil(in / 4)] of quads, `block` counts quads.
struct Stretch {
  uint16_t pairs, shared, own, rest;
};

// Where (chunk, K-block) begins in the buffers.
struct RunsStart {
  int32_t stretch, row, column, value;
};

struct Runs {
  static constexpr const char* kPacking = "runs";
  int64_t out, in;     // shape of W; in counts quads for int8
  int64_t chunk;       // rows of a chunk, at most 65535
  int64_t block;       // columns of a K-block, at most 256
  int64_t chunks;      // ceil(out / chunk)
  int64_t blocks;      // ceil(in / block), at least 1
  DType dtype;         // of values
  const void* values;  // f32, bf16, or quads of int8
  const uint8_t* columns;
  const uint16_t* rows;  // followed by two more that may be read: the kernel looks ahead
  const Stretch* stretches;
  const RunsStart* starts;  // [chunks * blocks + 1]
  // int8 only.
  const float* scales;         // [out]
  const int32_t* corrections;  // [chunks * chunk + 1]: -128 times the sum of a row's values
};

}  // namespace se
