#define SE_TARGET scalar
#include "simd/scalar.h"
#include "kernels/spmm_strips/kernel.h"
#include "kernels/widen.inl.h"
#include "kernels/spmm_strips/body.inl.h"

void se::spmm_strips_f32_scalar(const Strips& w, int64_t begin, int64_t end, const void* x,
                                int64_t tokens, float* y) {
  scalar::spmm_strips<float>(w, begin, end, static_cast<const float*>(x), tokens, y);
}

void se::spmm_strips_bf16_scalar(const Strips& w, int64_t begin, int64_t end, const void* x,
                                 int64_t tokens, float* y) {
  scalar::spmm_strips<scalar::bf16>(w, begin, end, static_cast<const float*>(x), tokens, y);
}
