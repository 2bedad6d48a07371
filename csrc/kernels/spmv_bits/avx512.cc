#define SE_TARGET avx512
#include "simd/avx512.h"
#include "kernels/spmv_bits/kernel.h"
#include "kernels/prefetch.inl.h"
#include "kernels/prepare.inl.h"
#include "kernels/spmv_bits/body.inl.h"

namespace se {
namespace avx512 {

// 16 columns. Activations of zeros are masked, so an Inf or NaN reaches only rows that use it.
struct Floats {
  using value = float;
  using Mask = uint16_t;
  using acc = vf;
  struct expanded {
    vf w;
    __mmask16 bits;
  };
  static constexpr int kColumns = 16, kBytes = 64;
  static vf start() { return zero(); }
  static expanded expand(Mask bits, const float* p) {
    return {_mm512_maskz_expand_ps(bits, load(p)), bits};
  }
  static void multiply_add(expanded e, const char* x, vf& acc) {
    acc = _mm512_mask3_fmadd_ps(e.w, load(reinterpret_cast<const float*>(x)), acc, e.bits);
  }
  static float sum(vf a, int32_t) { return _mm512_reduce_add_ps(a); }
};

}  // namespace avx512
}  // namespace se

float se::prepare_bits_f32_avx512(const float* x, int64_t in, void* prepared) {
  return avx512::copy_floats(x, in, prepared);
}

void se::spmv_bits_f32_avx512(const Bits& w, int64_t begin, int64_t end, const void* x,
                              int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  avx512::spmv_bits<avx512::Floats>(w, begin, end, x, x_stride, tokens, y, y_stride);
}
