#define SE_TARGET scalar
#include "simd/scalar.h"
#include "kernels/spmv_sellp/kernel.h"
#include "kernels/prefetch.inl.h"
#include "kernels/spmv_sellp/body.inl.h"

void se::spmv_sellp_f32_scalar(const SellP& w, int64_t begin, int64_t end, const float* x,
                               int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  scalar::spmv_sellp<float>(w, begin, end, x, x_stride, tokens, y, y_stride);
}

void se::spmv_sellp_bf16_scalar(const SellP& w, int64_t begin, int64_t end, const float* x,
                                int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  scalar::spmv_sellp<scalar::bf16>(w, begin, end, x, x_stride, tokens, y, y_stride);
}

void se::spmv_sellp_i8_scalar(const SellP& w, int64_t begin, int64_t end, const float* x,
                              int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  scalar::spmv_sellp<int8_t>(w, begin, end, x, x_stride, tokens, y, y_stride);
}
