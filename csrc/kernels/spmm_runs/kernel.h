// spmm_runs: one chunk of rows of an unstructured weight times one panel of tokens.
#pragma once

#include "core/capabilities.h"
#include "layouts/runs.h"

namespace se {

// y[r][t] = sum over k of W[chunk * w.chunk + r, k] * x[k][t]
//   x  panel [in][tokens], 64-byte aligned: float, or for int8 quads of bytes x + 128
//   y  [w.chunk + 1][tokens] floats (int32 for int8), 64-byte aligned, overwritten; the last row is
//      scratch; must not overlap x
//   tokens  16, 32 or 64, at most kernel.max_tokens
// Accumulates K-block by K-block in float, int8 exactly in int32. Safe from any number of threads.
using SpmmRunsFn = void (*)(const Runs& w, int64_t chunk, const void* x, int64_t tokens, void* y);

struct SpmmRunsKernel {
  const char* name;
  DType weight;
  CompileTarget target;
  Panel panel;         // of x
  int64_t max_tokens;  // widest panel whose sums fit the registers
  SpmmRunsFn run;
};

// The first row of kernels.inc for `weight` that `caps` covers.
const SpmmRunsKernel& spmm_runs(DType weight, Capabilities caps);

#define SE_SPMM_RUNS(weight, target, panel, max_tokens)                                           \
  void spmm_runs_##weight##_##target(const Runs& w, int64_t chunk, const void* x, int64_t tokens, \
                                     void* y);
#include "kernels/spmm_runs/kernels.inc"
#undef SE_SPMM_RUNS

}  // namespace se
