#define SE_TARGET avx512
#include "simd/avx512.h"
#include "kernels/spmv_tiles/kernel.h"
#include "kernels/prefetch.inl.h"
#include "kernels/prepare.inl.h"
#include "kernels/spmv_tiles/body.inl.h"

namespace se {
namespace avx512 {

// Two columns of 8 rows in each of two vectors.
struct Floats {
  using Mask = uint32_t;
  using Value = float;
  using X = float;
  struct Expanded {
    vf low, high;
  };
  struct Sum {
    vf low, high;
  };
  static constexpr int kTogether = 2;
  static Sum start() { return {zero(), zero()}; }
  static Expanded expand(Mask mask, const float* p) {
    const __mmask16 low = static_cast<__mmask16>(mask), high = static_cast<__mmask16>(mask >> 16);
    return {_mm512_maskz_expand_ps(low, load(p)),
            _mm512_maskz_expand_ps(high, load(p + __builtin_popcount(low)))};
  }
  static void multiply_add(const Expanded& w, const float* x, Sum& sum) {
    double pair;
    __builtin_memcpy(&pair, x, sizeof pair);
    const vf both = _mm512_castpd_ps(_mm512_set1_pd(pair));
    sum.low = fmadd(w.low, both, sum.low);
    sum.high = fmadd(w.high, both, sum.high);
  }
  static void store(float* y, const Sum& sum, const int32_t*) {
    const __m512i even =
        _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    avx512::store(y, add(_mm512_permutex2var_ps(sum.low, even, sum.high),
                         _mm512_permutex2var_ps(sum.low, odd, sum.high)));
  }
};

}  // namespace avx512
}  // namespace se

float se::prepare_tiles_f32_avx512(const float* x, int64_t in, void* prepared) {
  return avx512::copy_floats(x, in, prepared);
}

void se::spmv_tiles_f32_avx512(const Tiles& w, int64_t begin, int64_t end, const void* x,
                               int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  avx512::spmv_tiles<avx512::Floats>(w, begin, end, x, x_stride, tokens, y, y_stride);
}
