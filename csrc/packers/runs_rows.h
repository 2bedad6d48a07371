// Reads back the buffers that layouts/runs.h draws.
#pragma once

#include <cstdint>
#include <vector>

#include "layouts/runs.h"

namespace se {

// The elements of some rows, row after row, columns rising within each.
struct RowsBuffers {
  std::vector<int64_t> pointers;  // [rows + 1], from 0
  std::vector<int32_t> columns;
  std::vector<uint8_t> values;  // bytes
};

// Rows begin to end - 1 of `w`, with values of `element` bytes (2 or 4). `sizes` are the stretches,
// rows, columns and values that the buffers hold. Every chunk that holds one of the rows is checked
// first: its starts fit its stretches and the buffers, it has each of its rows once in the first
// K-block and at most once in the others, and stores no column outside the matrix and none twice.
// Throws std::invalid_argument, naming what is wrong.
RowsBuffers rows_of_runs(const Runs& w, const RunsStart& sizes, int64_t element, int64_t begin,
                         int64_t end);

}  // namespace se
