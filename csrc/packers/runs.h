// Makes the buffers that layouts/runs.h draws.
#pragma once

#include <cstdint>
#include <vector>

#include "layouts/runs.h"
#include "packers/csr.h"

namespace se {

struct RunsBuffers {
  std::vector<uint8_t> values;  // bytes
  std::vector<uint8_t> columns;
  std::vector<uint16_t> rows;
  std::vector<Stretch> stretches;
  std::vector<RunsStart> starts;
};

// Rows of a (chunk, K-block) are sorted by their number of non-zeros. Each row is paired with the
// row, of the next few with as many non-zeros, that shares most columns with it. Pairs are then
// sorted by their lengths, so that equal lengths are adjacent. Runs on omp_get_max_threads()
// threads; the result does not depend on them. Throws std::length_error when a buffer outgrows
// int32.
RunsBuffers pack_runs(const CsrView& w, int64_t chunk, int64_t block);

}  // namespace se
