#define SE_TARGET avx2
#include "simd/avx2.h"
#include "kernels/spmv_sellp/kernel.h"
#include "kernels/prefetch.inl.h"
#include "kernels/spmv_sellp/body.inl.h"

void se::spmv_sellp_f32_avx2(const SellP& w, int64_t begin, int64_t end, const float* x,
                             int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  avx2::spmv_sellp<float>(w, begin, end, x, x_stride, tokens, y, y_stride);
}

void se::spmv_sellp_bf16_avx2(const SellP& w, int64_t begin, int64_t end, const float* x,
                              int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  avx2::spmv_sellp<avx2::bf16>(w, begin, end, x, x_stride, tokens, y, y_stride);
}

void se::spmv_sellp_i8_avx2(const SellP& w, int64_t begin, int64_t end, const float* x,
                            int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  avx2::spmv_sellp<int8_t>(w, begin, end, x, x_stride, tokens, y, y_stride);
}
