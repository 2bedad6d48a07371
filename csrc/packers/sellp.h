// Makes the buffers that layouts/sellp.h draws.
#pragma once

#include "packers/csr.h"

namespace se {

struct SellPBuffers {
  std::vector<uint8_t> values;  // bytes
  std::vector<uint8_t> picks;
  std::vector<uint16_t> offsets;
  std::vector<int32_t> starts, rows;
};

// Runs on omp_get_max_threads() threads; the result does not depend on them. w.in is at most 65536.
// Throws std::length_error when the steps outgrow int32.
SellPBuffers pack_sellp(const CsrView& w);

}  // namespace se
