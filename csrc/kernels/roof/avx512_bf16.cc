#define SE_TARGET avx512_bf16
#include "simd/avx512.h"
#include "kernels/roof/roof.h"

// Ten chains of vdpbf16ps: 64 FLOP each.
float se::bf16_dot_loop_avx512_bf16(int64_t rounds) {
  using namespace avx512_bf16;
  vf acc[10];
  for (int i = 0; i < 10; ++i) acc[i] = zero();
  __m512bh a = (__m512bh)_mm512_set1_epi32(0x3F003F00), b = a;
  for (int64_t r = 0; r < rounds; ++r) {
    SE_UNROLL
    for (int i = 0; i < 10; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], a, b);
  }
  vf sum = acc[0];
  for (int i = 1; i < 10; ++i) sum = add(sum, acc[i]);
  float lanes[16];
  store(lanes, sum);
  return lanes[0];
}
