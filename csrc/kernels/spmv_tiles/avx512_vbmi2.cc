#define SE_TARGET avx512_vbmi2
#include "simd/avx512.h"
#include "kernels/spmv_tiles/kernel.h"
#include "kernels/expand.inl.h"
#include "kernels/prefetch.inl.h"
#include "kernels/prepare.inl.h"
#include "kernels/spmv_tiles/body.inl.h"

namespace se {
namespace avx512_vbmi2 {

// Two columns of 16 rows: even words are widened by a shift, odd ones by a mask.
struct Words {
  using Mask = uint32_t;
  using Value = uint16_t;
  using X = float;
  struct Expanded {
    vf even, odd;
  };
  struct Sum {
    vf even, odd;
  };
  static constexpr int kTogether = 2;
  static Sum start() { return {zero(), zero()}; }
  static Expanded expand(Mask mask, const uint16_t* p) {
    const __m512i e = expand_words(mask, _mm512_loadu_si512(p));
    return {
        _mm512_castsi512_ps(_mm512_slli_epi32(e, 16)),
        _mm512_castsi512_ps(_mm512_and_si512(e, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))))};
  }
  static void multiply_add(const Expanded& w, const float* x, Sum& sum) {
    sum.even = fmadd(w.even, broadcast(x), sum.even);
    sum.odd = fmadd(w.odd, broadcast(x + 1), sum.odd);
  }
  static void store(float* y, const Sum& sum, const int32_t*) {
    avx512_vbmi2::store(y, add(sum.even, sum.odd));
  }
};

// Four columns of 16 rows.
struct Bytes {
  using Mask = uint64_t;
  using Value = int8_t;
  using X = uint8_t;
  using Expanded = __m512i;
  using Sum = __m512i;
  static constexpr int kTogether = 4;
  static Sum start() { return _mm512_setzero_si512(); }
  static Expanded expand(Mask mask, const int8_t* p) {
    return expand_bytes(mask, _mm512_loadu_si512(p));
  }
  static void multiply_add(Expanded w, const uint8_t* x, Sum& sum) {
    int32_t quad;
    __builtin_memcpy(&quad, x, sizeof quad);
    sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(quad), w);
  }
  static void store(float* y, Sum sum, const int32_t* corrections) {
    const __m512i exact = _mm512_add_epi32(sum, _mm512_loadu_si512(corrections));
    avx512_vbmi2::store(y, _mm512_cvtepi32_ps(exact));
  }
};

}  // namespace avx512_vbmi2
}  // namespace se

float se::prepare_tiles_bf16_avx512_vbmi2(const float* x, int64_t in, void* prepared) {
  return avx512_vbmi2::copy_floats(x, in, prepared);
}

void se::spmv_tiles_bf16_avx512_vbmi2(const Tiles& w, int64_t begin, int64_t end, const void* x,
                                      int64_t x_stride, int64_t tokens, float* y,
                                      int64_t y_stride) {
  avx512_vbmi2::spmv_tiles<avx512_vbmi2::Words>(w, begin, end, x, x_stride, tokens, y, y_stride);
}

float se::prepare_tiles_i8_avx512_vbmi2(const float* x, int64_t in, void* prepared) {
  return avx512_vbmi2::quantize_bytes(x, in, prepared);
}

void se::spmv_tiles_i8_avx512_vbmi2(const Tiles& w, int64_t begin, int64_t end, const void* x,
                                    int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  avx512_vbmi2::spmv_tiles<avx512_vbmi2::Bytes>(w, begin, end, x, x_stride, tokens, y, y_stride);
}
