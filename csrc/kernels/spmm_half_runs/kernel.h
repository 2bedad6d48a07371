// spmm_half_runs: spmm_runs with the products in float16. Each row of W and each token is
// multiplied by a power of two, so that nothing overflows and hardly anything vanishes; sums of
// float16 are as short as the non-zeros of a row in a K-block, and are added in float.
//
// Rounding: with the powers, |W| < 64, |x| < 2 (|x| < 1 below 2^127), and a K-block has at most 256
// columns, so sums stay below 2^15. bf16 values down to 2^-22 of the largest of their row are
// exact. x is rounded to 11 bits where bf16 has 8, but to a step of 2^-24 below 2^-14 of its
// token's power. Every multiply-add rounds to 11 bits.
#pragma once

#include "kernels/spmm_runs/kernel.h"

namespace se {

// As spmm_runs, for w.powers and, in place of floats, a panel of halves (panel_io/kernel.h).
const SpmmRunsKernel& spmm_half_runs(DType weight, Capabilities caps);

#define SE_SPMM_HALF_RUNS(weight, target, panel, max_tokens)                           \
  void spmm_half_runs_##weight##_##target(const Runs& w, int64_t chunk, const void* x, \
                                          int64_t tokens, void* y);
#include "kernels/spmm_half_runs/kernels.inc"
#undef SE_SPMM_HALF_RUNS

}  // namespace se
