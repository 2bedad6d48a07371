#define SE_TARGET scalar
#include "simd/scalar.h"
#include "kernels/spmv_strips/kernel.h"
#include "kernels/spmv_strips/body.inl.h"

void se::spmv_strips_f32_scalar(const Strips& w, int64_t begin, int64_t end, const float* x,
                                int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  scalar::spmv_strips<float>(w, begin, end, x, x_stride, tokens, y, y_stride);
}

void se::spmv_strips_bf16_scalar(const Strips& w, int64_t begin, int64_t end, const float* x,
                                 int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  scalar::spmv_strips<scalar::bf16>(w, begin, end, x, x_stride, tokens, y, y_stride);
}
