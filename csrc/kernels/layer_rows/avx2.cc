#define SE_TARGET avx2
#include "simd/avx2.h"
#include "kernels/layer_rows/kernel.h"
#include "kernels/panel_io/activation.inl.h"
#include "kernels/layer_rows/body.inl.h"

void se::norm_row_avx2(const float* x, int64_t features, const Norm& norm, float* y) {
  avx2::norm_row(x, features, norm, y);
}

void se::multiply_row_avx2(const float* x, int64_t n, float* y) { avx2::multiply_row(x, n, y); }

void se::rotate_row_avx2(float* x, int64_t half, const float* cosines, const float* sines) {
  avx2::rotate_row(x, half, cosines, sines);
}

void se::attend_row_avx2(const RowAttention& attention) { avx2::attend_row(attention); }
