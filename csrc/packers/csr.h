// What packers start from.
#pragma once

#include <cstdint>
#include <vector>

namespace se {

// W [out, in] by rows, columns rising within a row; values of `element` bytes (1, 2 or 4).
struct CsrView {
  int64_t out, in;
  const int32_t* pointers;  // [out + 1]
  const int32_t* columns;   // [pointers[out]]
  const void* values;       // [pointers[out]]
  int64_t element;
};

}  // namespace se
