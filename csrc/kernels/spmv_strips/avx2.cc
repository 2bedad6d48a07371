#define SE_TARGET avx2
#include "simd/avx2.h"
#include "kernels/spmv_strips/kernel.h"
#include "kernels/spmv_strips/body.inl.h"

void se::spmv_strips_f32_avx2(const Strips& w, int64_t begin, int64_t end, const float* x,
                              int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  avx2::spmv_strips<float>(w, begin, end, x, x_stride, tokens, y, y_stride);
}

void se::spmv_strips_bf16_avx2(const Strips& w, int64_t begin, int64_t end, const float* x,
                               int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  avx2::spmv_strips<avx2::bf16>(w, begin, end, x, x_stride, tokens, y, y_stride);
}
