// spmv_sellp: a range of SELL-P groups times one to four tokens.
#pragma once

#include "core/capabilities.h"
#include "layouts/sellp.h"

namespace se {

// y[t][r] = sum over k of W[r, k] * x[t][k] for the rows r of groups [begin, end)
//   x  [tokens][x_stride] floats, of which in + 31 are readable and those past `in` are zero
//   y  [tokens][y_stride] floats, y_stride > w.out: entry w.out is scratch
//   tokens  1 to 4; the weights are read once for all of them
// Accumulates in float; int8 sums are not scaled yet. A stored zero is multiplied with an
// activation of its window, so Inf and NaN in x may reach rows that do not use their column. Safe
// from any number of threads.
using SpmvSellPFn = void (*)(const SellP& w, int64_t begin, int64_t end, const float* x,
                             int64_t x_stride, int64_t tokens, float* y, int64_t y_stride);

struct SpmvSellPKernel {
  const char* name;
  DType weight;
  CompileTarget target;
  SpmvSellPFn run;
};

// The first row of kernels.inc for `weight` that `caps` covers.
const SpmvSellPKernel& spmv_sellp(DType weight, Capabilities caps);

#define SE_SPMV_SELLP(weight, target)                                                             \
  void spmv_sellp_##weight##_##target(const SellP& w, int64_t begin, int64_t end, const float* x, \
                                      int64_t x_stride, int64_t tokens, float* y,                 \
                                      int64_t y_stride);
#include "kernels/spmv_sellp/kernels.inc"
#undef SE_SPMV_SELLP

}  // namespace se
