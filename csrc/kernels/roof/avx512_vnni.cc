#define SE_TARGET avx512_vnni
#include "simd/avx512.h"
#include "kernels/roof/roof.h"

// Twelve chains of vpdpbusd: 128 operations each.
float se::i8_dot_loop_avx512_vnni(int64_t rounds) {
  __m512i acc[12];
  for (int i = 0; i < 12; ++i) acc[i] = _mm512_setzero_si512();
  const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-5);
  for (int64_t r = 0; r < rounds; ++r) {
    SE_UNROLL
    for (int i = 0; i < 12; ++i) acc[i] = _mm512_dpbusd_epi32(acc[i], a, b);
  }
  __m512i sum = acc[0];
  for (int i = 1; i < 12; ++i) sum = _mm512_add_epi32(sum, acc[i]);
  return static_cast<float>(_mm512_reduce_add_epi32(sum));
}
