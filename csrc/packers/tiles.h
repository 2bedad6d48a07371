// Builds the buffers of layouts/tiles.h.
#pragma once

#include <cstdint>
#include <vector>

#include "packers/csr.h"

namespace se {

struct TilesBuffers {
  std::vector<uint8_t> values;  // `element` bytes each, then 64 readable values
  std::vector<uint8_t> masks;   // empty if tiles are whole
  std::vector<uint16_t> columns;
  std::vector<uint8_t> halves;
  std::vector<int32_t> entries, tiles, starts;
};

// Values of 1 byte are int8; w.in is at most 2^20.
TilesBuffers pack_tiles(const CsrView& w);

}  // namespace se
