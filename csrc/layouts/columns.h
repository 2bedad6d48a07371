// Columns: a packing for matrix instructions that gather. A plain-data view; packers/columns.cc and
// sparse_engine/packings/cpu/columns.py make the buffers.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace se {

// W [out, in] is cut into bands of `height` output rows, 16 or 32. A band stores the columns that
// any of its rows uses, in steps of 32, or 64 of int8. The last step of a band repeats its last
// column with zeros for values. A step has one tile of 16 rows x 64 bytes, or two, one after the
// other:
//
//   columns   3 8 9 .. 60 | 61 61 61 ..    two steps of a band
//   values    rows 0 to 15 of the first step, (rows 16 to 31,) rows 0 to 15 of the second, ..
//   pointers  0 2 ..                       [bands + 1]: first step of each band
struct Columns {
  static constexpr const char* kPacking = "columns";
  int64_t out, in;          // in is at most 65536
  int64_t height;           // rows of a band; the last band is padded with zero rows
  int64_t bands;            // ceil(out / height)
  DType dtype;              // of values: bf16 or int8
  const void* values;       // [steps][height / 16][16][columns of a step]
  const uint16_t* columns;  // [steps][columns of a step]
  const int32_t* pointers;  // [bands + 1]
  const float* scales;      // int8 only, [out]

  int64_t step() const { return dtype == DType::i8 ? 64 : 32; }  // columns
};

}  // namespace se
