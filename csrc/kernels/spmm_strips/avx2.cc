#define SE_TARGET avx2
#include "simd/avx2.h"
#include "kernels/spmm_strips/kernel.h"
#include "kernels/widen.inl.h"
#include "kernels/spmm_strips/body.inl.h"

void se::spmm_strips_f32_avx2(const Strips& w, int64_t begin, int64_t end, const void* x,
                              int64_t tokens, float* y) {
  avx2::spmm_strips<float>(w, begin, end, static_cast<const float*>(x), tokens, y);
}

void se::spmm_strips_bf16_avx2(const Strips& w, int64_t begin, int64_t end, const void* x,
                               int64_t tokens, float* y) {
  avx2::spmm_strips<avx2::bf16>(w, begin, end, static_cast<const float*>(x), tokens, y);
}
