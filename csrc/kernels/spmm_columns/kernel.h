// spmm_columns: a range of bands of column lists times one panel of tokens.
#pragma once

#include "core/capabilities.h"
#include "layouts/columns.h"

namespace se {

struct SpmmColumnsKernel {
  const char* name;
  DType weight;
  CompileTarget target;
  Panel panel;         // of x
  int64_t min_tokens;  // narrowest panel that the kernel accepts
  // sums[r][t] = sum over k of W[begin * height + r, k] * x[k][t]
  //   x  panel [in][tokens] of floats, bf16 or bytes (panel_io/kernel.h), aligned to the bytes of a
  //      row, at most 64
  //   sums  [(end - begin) * height][tokens] floats, or int32 for int8; 64-byte aligned,
  //         overwritten; must not overlap x
  //   tokens  16, 32 or 64, at least min_tokens
  // bf16 products are summed in float, int8 exactly. A column of a band is multiplied for all its
  // rows, so Inf and NaN may reach rows that do not use it. Safe from any number of threads.
  void (*run)(const Columns& w, int64_t begin, int64_t end, const void* x, int64_t tokens,
              void* sums);
};

// The first row of kernels.inc for `weight` that `caps` covers.
const SpmmColumnsKernel& spmm_columns(DType weight, Capabilities caps);

#define SE_SPMM_COLUMNS(weight, target, panel, min_tokens)                            \
  void spmm_columns_##weight##_##target(const Columns& w, int64_t begin, int64_t end, \
                                        const void* x, int64_t tokens, void* sums);
#include "kernels/spmm_columns/kernels.inc"
#undef SE_SPMM_COLUMNS

}  // namespace se
