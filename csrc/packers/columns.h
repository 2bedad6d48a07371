// Makes the buffers that layouts/columns.h draws.
#pragma once

#include <cstdint>
#include <vector>

#include "packers/csr.h"

namespace se {

struct ColumnsBuffers {
  std::vector<uint8_t> values;
  std::vector<uint16_t> columns;
  std::vector<int32_t> pointers;
};

// height: 16 or 32. w.in is at most 65536. Values of 1 byte are int8, others bf16.
ColumnsBuffers pack_columns(const CsrView& w, int64_t height);

}  // namespace se
