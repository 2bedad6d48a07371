// spmv_strips: a range of strips times one to eight tokens.
#pragma once

#include "core/capabilities.h"
#include "layouts/strips.h"

namespace se {

// y[t][r] = sum over k of W[r, k] * x[t][k] for the rows r of strips [begin, end)
//   x  [tokens][x_stride] floats;  y  [tokens][y_stride] floats; must not overlap x
//   tokens  1 to 8; the weights are read once for all of them
// Accumulates in float. Safe from any number of threads.
using SpmvStripsFn = void (*)(const Strips& w, int64_t begin, int64_t end, const float* x,
                              int64_t x_stride, int64_t tokens, float* y, int64_t y_stride);

struct SpmvStripsKernel {
  const char* name;
  DType weight;
  CompileTarget target;
  SpmvStripsFn run;
};

// The first row of kernels.inc for `weight` that `caps` covers.
const SpmvStripsKernel& spmv_strips(DType weight, Capabilities caps);

#define SE_SPMV_STRIPS(weight, target)                                                             \
  void spmv_strips_##weight##_##target(const Strips& w, int64_t begin, int64_t end,                \
                                       const float* x, int64_t x_stride, int64_t tokens, float* y, \
                                       int64_t y_stride);
#include "kernels/spmv_strips/kernels.inc"
#undef SE_SPMV_STRIPS

}  // namespace se
