// Makes the buffers that layouts/strips.h draws.
#pragma once

#include "packers/csr.h"

namespace se {

struct StripsBuffers {
  std::vector<uint8_t> values;  // bytes, [entries][height]
  std::vector<uint16_t> columns;
  std::vector<int32_t> pointers;
};

// Strips of `height` rows (at least 1) and K-blocks of `block` columns (1 to 65536). Runs on
// omp_get_max_threads() threads; the result does not depend on them. Throws std::length_error when
// the entries outgrow int32.
StripsBuffers pack_strips(const CsrView& w, int64_t height, int64_t block);

}  // namespace se
