// The input of the packers, and a parallel loop that passes exceptions on.
#pragma once

#include <cstdint>
#include <exception>
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

// Runs body(i) for i in [0, count) on all threads, then rethrows the first exception: none may
// leave a parallel region.
template <class Body>
void in_parallel(int64_t count, Body body) {
  std::exception_ptr failed;
#pragma omp parallel for schedule(dynamic)
  for (int64_t i = 0; i < count; ++i) {
    try {
      body(i);
    } catch (...) {
#pragma omp critical
      if (!failed) failed = std::current_exception();
    }
  }
  if (failed) std::rethrow_exception(failed);
}

}  // namespace se
