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

// Everything but the values, for the pattern of `w`. Runs on omp_get_max_threads() threads; the
// result does not depend on them. w.in is at most 65536. Throws std::length_error when the steps
// outgrow int32.
SellPBuffers sellp_pattern(const CsrView& w);

// Writes the values of rows first to first + rows.out - 1 into `values`, which is zero and has
// sixteen values a step. The pattern must be that of a matrix with these rows; `lanes` [out] is the
// lane of each row of it: 16 x its slice + its place in there.
void fill_sellp(const CsrView& rows, int64_t first, const int32_t* lanes, const uint16_t* offsets,
                const int32_t* starts, uint8_t* values);

// All of it.
SellPBuffers pack_sellp(const CsrView& w);

}  // namespace se
