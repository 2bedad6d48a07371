#define SE_TARGET avx512_vbmi2
#include "simd/avx512.h"
#include "kernels/spmv_bits/kernel.h"
#include "kernels/expand.inl.h"
#include "kernels/prefetch.inl.h"
#include "kernels/prepare.inl.h"
#include "kernels/spmv_bits/body.inl.h"

namespace se {
namespace avx512_vbmi2 {

// 32 columns. Even ones are widened by a shift, odd ones by a mask, so `prepare` orders x as 16
// even columns, then 16 odd ones.
struct Words {
  using value = uint16_t;
  using Mask = uint32_t;
  struct acc {
    vf even, odd;
  };
  struct expanded {
    vf even, odd;
  };
  static constexpr int kColumns = 32, kBytes = 128;
  static acc start() { return {zero(), zero()}; }
  static expanded expand(Mask bits, const uint16_t* p) {
    const __m512i e = expand_words(bits, _mm512_loadu_si512(p));
    return {
        _mm512_castsi512_ps(_mm512_slli_epi32(e, 16)),
        _mm512_castsi512_ps(_mm512_and_si512(e, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))))};
  }
  static void multiply_add(const expanded& e, const char* x, acc& a) {
    const float* p = reinterpret_cast<const float*>(x);
    a.even = fmadd(e.even, load(p), a.even);
    a.odd = fmadd(e.odd, load(p + 16), a.odd);
  }
  static float sum(const acc& a, int32_t) { return _mm512_reduce_add_ps(add(a.even, a.odd)); }
};

// 64 columns.
struct Bytes {
  using value = int8_t;
  using Mask = uint64_t;
  using acc = __m512i;
  using expanded = __m512i;
  static constexpr int kColumns = 64, kBytes = 64;
  static acc start() { return _mm512_setzero_si512(); }
  static expanded expand(Mask bits, const int8_t* p) {
    return expand_bytes(bits, _mm512_loadu_si512(p));
  }
  static void multiply_add(expanded w, const char* x, acc& a) {
    a = _mm512_dpbusd_epi32(a, _mm512_loadu_si512(x), w);
  }
  static float sum(acc a, int32_t correction) {
    return static_cast<float>(_mm512_reduce_add_epi32(a) + correction);
  }
};

}  // namespace avx512_vbmi2
}  // namespace se

float se::prepare_bits_bf16_avx512_vbmi2(const float* x, int64_t in, void* prepared) {
  float* to = static_cast<float*>(prepared);
  for (int64_t k = 0; k < avx512_vbmi2::padded(in); ++k)
    to[k / 32 * 32 + k % 2 * 16 + k % 32 / 2] = k < in ? x[k] : 0.0f;
  return 1.0f;
}

void se::spmv_bits_bf16_avx512_vbmi2(const Bits& w, int64_t begin, int64_t end, const void* x,
                                     int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  avx512_vbmi2::spmv_bits<avx512_vbmi2::Words>(w, begin, end, x, x_stride, tokens, y, y_stride);
}

float se::prepare_bits_i8_avx512_vbmi2(const float* x, int64_t in, void* prepared) {
  return avx512_vbmi2::quantize_bytes(x, in, prepared);
}

void se::spmv_bits_i8_avx512_vbmi2(const Bits& w, int64_t begin, int64_t end, const void* x,
                                   int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  avx512_vbmi2::spmv_bits<avx512_vbmi2::Bytes>(w, begin, end, x, x_stride, tokens, y, y_stride);
}
