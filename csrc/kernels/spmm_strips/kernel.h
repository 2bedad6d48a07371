// spmm_strips: a range of strips times one panel of tokens.
#pragma once

#include "core/capabilities.h"
#include "layouts/strips.h"

namespace se {

// y[r][t] = sum over k of W[begin * height + r, k] * x[k][t]
//   x  panel [in][tokens], 64-byte aligned: float, or bf16 in the order of panel_io/kernel.h
//   y  [(end - begin) * height][tokens] floats, 64-byte aligned, overwritten; must not overlap x
//   tokens  16, 32 or 64, at least kernel.min_tokens
// Accumulates in float, K-block by K-block, so that the slice of x in use stays in L1 or L2.
// Safe from any number of threads.
using SpmmStripsFn = void (*)(const Strips& w, int64_t begin, int64_t end, const void* x,
                              int64_t tokens, float* y);

struct SpmmStripsKernel {
  const char* name;
  DType weight;
  CompileTarget target;
  Panel panel;         // of x
  int64_t min_tokens;  // narrowest panel that the kernel accepts
  SpmmStripsFn run;
};

// The first row of kernels.inc for `weight` that `caps` covers.
const SpmmStripsKernel& spmm_strips(DType weight, Capabilities caps);

#define SE_SPMM_STRIPS(weight, target, panel, min_tokens)                                          \
  void spmm_strips_##weight##_##target(const Strips& w, int64_t begin, int64_t end, const void* x, \
                                       int64_t tokens, float* y);
#include "kernels/spmm_strips/kernels.inc"
#undef SE_SPMM_STRIPS

}  // namespace se
