#define SE_TARGET scalar
#include "simd/scalar.h"
#include "kernels/layer_rows/kernel.h"
#include "kernels/panel_io/activation.inl.h"
#include "kernels/layer_rows/body.inl.h"

void se::norm_row_scalar(const float* x, int64_t features, const Norm& norm, float* y) {
  scalar::norm_row(x, features, norm, y);
}

void se::multiply_row_scalar(const float* x, int64_t n, float* y) { scalar::multiply_row(x, n, y); }

void se::rotate_row_scalar(float* x, int64_t half, const float* cosines, const float* sines) {
  scalar::rotate_row(x, half, cosines, sines);
}

void se::attend_row_scalar(const RowAttention& attention) { scalar::attend_row(attention); }
