// spmv_groups: a range of N:M rows times one to four tokens.
#pragma once

#include "core/capabilities.h"
#include "layouts/groups.h"

namespace se {

// y[t][r] = sum over k of W[r, k] * x[t][k] for the rows r in [begin, end)
//   x  [tokens][x_stride] floats, zero past `in` up to whole spans of 64
//   y  [tokens][y_stride] floats;  tokens  1 to 4; the weights are read once for all of them
// Accumulates in float; int8 sums are not scaled yet. A stored zero is multiplied with the
// activation of its column, so Inf and NaN in x may reach rows whose value there is zero. Safe from
// any number of threads.
using SpmvGroupsFn = void (*)(const Groups& w, int64_t begin, int64_t end, const float* x,
                              int64_t x_stride, int64_t tokens, float* y, int64_t y_stride);

struct SpmvGroupsKernel {
  const char* name;
  DType weight;
  CompileTarget target;
  SpmvGroupsFn run;
};

// The first row of kernels.inc for `weight` that `caps` covers.
const SpmvGroupsKernel& spmv_groups(DType weight, Capabilities caps);

#define SE_SPMV_GROUPS(weight, target)                                                             \
  void spmv_groups_##weight##_##target(const Groups& w, int64_t begin, int64_t end,                \
                                       const float* x, int64_t x_stride, int64_t tokens, float* y, \
                                       int64_t y_stride);
#include "kernels/spmv_groups/kernels.inc"
#undef SE_SPMV_GROUPS

}  // namespace se
