// Tiles: a packing for matrix instructions that multiply whole tiles. A plain-data view;
// packers/tiles.cc and sparse_engine/packings/cpu/tiles.py make the buffers.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace se {

// W [out, in] is cut into bands of 32 output rows, and each band into tiles of 16 rows and `depth`
// columns: 32 of float32 and bfloat16, 64 of int8. A tile is stored transposed, as the second
// operand of a tile product: 16 lines, and in line l, for each of the 16 rows in turn, the
// columns l g to l g + g - 1, where g = depth / 16 columns are multiplied at once (2 or 4).
//
//   columns   0 1   2 3         rows 0, 1, .. of a tile, g = 2; letters are non-zeros
//   row 0   | a .   b c |       line 0   a . | . d | ..     mask 0b1001, values a d
//   row 1   | . d   . e |       line 1   b c | . e | ..     mask 0b1011, values b c e
//
// An entry is one tile column of a band with one or both of its tiles; tiles without a non-zero are
// not stored. Where masks would take more bytes than the zeros they save, all tiles are stored
// whole and there are no masks.
struct Tiles {
  static constexpr const char* kPacking = "tiles";
  static constexpr int64_t kRows = 16, kBand = 32, kLines = 16;
  int64_t out, in;
  int64_t bands;            // ceil(out / 32)
  DType dtype;              // of values
  const void* values;       // [number of values + 64]
  const void* masks;        // [tiles][16] uint32, or uint64 for int8; null if tiles are whole
  const uint16_t* columns;  // [entries]: tile column
  const uint8_t* halves;    // [entries]: bit 0 for rows 0 to 15 of the band, bit 1 for the others
  const int32_t* entries;   // [bands + 1]: first entry of each band
  const int32_t* tiles;     // [bands + 1]: first tile of each band
  const int32_t* starts;    // [bands + 1]: first value of each band
  const float* scales;      // int8 only, [out]
  const int32_t* corrections;  // int8 only, [32 bands]: -128 times the sum of a row's values

  // Columns that are multiplied at once, columns of a tile, elements of a tile.
  int64_t together() const { return dtype == DType::i8 ? 4 : 2; }
  int64_t depth() const { return 16 * together(); }
  int64_t size() const { return 256 * together(); }
  int64_t columns_of_tiles() const { return (in + depth() - 1) / depth(); }
};

}  // namespace se
