#define SE_TARGET avx512
#include "simd/avx512.h"
#include "kernels/spmm_runs/kernel.h"
#include "kernels/widen.inl.h"
#include "kernels/spmm_runs/pair.inl.h"
#include "kernels/spmm_runs/body.inl.h"

void se::spmm_runs_f32_avx512(const Runs& w, int64_t chunk, const void* x, int64_t tokens,
                              void* y) {
  avx512::spmm_runs<avx512::Floats, avx512::Weights<avx512::Floats>>(w, chunk, x, tokens, y);
}

void se::spmm_runs_bf16_avx512(const Runs& w, int64_t chunk, const void* x, int64_t tokens,
                               void* y) {
  avx512::spmm_runs<avx512::Floats, avx512::WideWeights>(w, chunk, x, tokens, y);
}
