// The products in float: what those in float16 round.
#define SE_TARGET scalar
#include "simd/scalar.h"
#include "kernels/spmm_half_runs/kernel.h"
#include "kernels/widen.inl.h"
#include "kernels/spmm_runs/pair.inl.h"
#include "kernels/spmm_runs/body.inl.h"

void se::spmm_half_runs_bf16_scalar(const Runs& w, int64_t chunk, const void* x, int64_t tokens,
                                    void* y) {
  scalar::spmm_runs<scalar::Floats, scalar::WideWeights>(w, chunk, x, tokens, y);
}
