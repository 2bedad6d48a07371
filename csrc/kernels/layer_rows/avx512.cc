#define SE_TARGET avx512
#include "simd/avx512.h"
#include "kernels/layer_rows/kernel.h"
#include "kernels/panel_io/activation.inl.h"
#include "kernels/layer_rows/body.inl.h"

void se::norm_row_avx512(const float* x, int64_t features, const Norm& norm, float* y) {
  avx512::norm_row(x, features, norm, y);
}

void se::multiply_row_avx512(const float* x, int64_t n, float* y) { avx512::multiply_row(x, n, y); }

void se::rotate_row_avx512(float* x, int64_t half, const float* cosines, const float* sines) {
  avx512::rotate_row(x, half, cosines, sines);
}

void se::attend_row_avx512(const RowAttention& attention) { avx512::attend_row(attention); }
