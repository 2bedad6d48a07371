// Eight floats in a ymm register. The names are documented in simd/scalar.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define SE_UNROLL _Pragma("GCC unroll 16")

namespace se {
namespace SE_TARGET {

using vf = __m256;
struct bf16 {
  uint16_t bits;
};
constexpr int kLanes = 8;
constexpr int kAccumulators = 8;

inline vf zero() { return _mm256_setzero_ps(); }
inline vf set1(float a) { return _mm256_set1_ps(a); }
inline vf load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, vf a) { _mm256_storeu_ps(p, a); }
inline void stream(float* p, vf a) {
  if (reinterpret_cast<uintptr_t>(p) % 32 == 0)
    _mm256_stream_ps(p, a);
  else
    store(p, a);
}
inline vf load(const bf16* p) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
inline vf broadcast(const float* p) { return _mm256_broadcast_ss(p); }

inline vf fmadd(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
inline vf add(vf a, vf b) { return _mm256_add_ps(a, b); }
inline vf sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
inline vf mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
inline vf div(vf a, vf b) { return _mm256_div_ps(a, b); }
inline vf inverse(vf a) { return div(set1(1.0f), a); }
inline vf at_least(vf bound, vf a) { return _mm256_max_ps(bound, a); }
inline vf at_most(vf bound, vf a) { return _mm256_min_ps(bound, a); }
inline vf round_even(vf a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline vf scale_by_power(vf a, vf n) {
  const __m256i exponent =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(a, _mm256_castsi256_ps(exponent));
}
inline vf abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline vf copy_sign(vf magnitude, vf sign) {
  const __m256 bit = _mm256_set1_ps(-0.0f);
  return _mm256_or_ps(_mm256_and_ps(bit, sign), _mm256_andnot_ps(bit, magnitude));
}

// bf16 bits of each lane, round to nearest even, in the low half of 32-bit lanes; NaN stays NaN.
inline __m256i round_to_bf16(vf a) {
  const __m256i u = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x00400000));
  return _mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, nan), 16);
}
inline vf nearest_bf16(vf a) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(round_to_bf16(a), 16));
}
inline void store(bf16* p, vf a) {
  const __m256i wide = round_to_bf16(a);
  _mm_storeu_si128((__m128i*)p, _mm_packus_epi32(_mm256_castsi256_si128(wide),
                                                 _mm256_extracti128_si256(wide, 1)));
}

inline vf load(const int32_t* p) {
  return _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i*)p));
}
inline void store_offset_bytes(uint8_t* p, vf a) {
  const __m256i wide = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(128));
  const __m128i half =
      _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storel_epi64((__m128i*)p, _mm_packus_epi16(half, half));
}
inline void store_offset_quads(float* p, vf a, vf b, vf c, vf d) {
  const auto byte = [](vf x) {
    return _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(128));
  };
  const __m256i low = _mm256_or_si256(byte(a), _mm256_slli_epi32(byte(b), 8));
  const __m256i high = _mm256_or_si256(byte(c), _mm256_slli_epi32(byte(d), 8));
  _mm256_storeu_si256((__m256i*)p, _mm256_or_si256(low, _mm256_slli_epi32(high, 16)));
}

inline vf load(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}

using Picks = __m256i;
inline Picks load_picks(const uint8_t* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
}
// A gather; four permutations and three blends are no faster.
inline vf pick(const float* window, Picks which) { return _mm256_i32gather_ps(window, which, 4); }

// r[i][j] <-> r[j][i]: unpack pairs, then quads, then swap 128-bit halves.
inline void transpose(vf (&r)[8]) {
  __m256 t[8];
  SE_UNROLL
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  SE_UNROLL
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
  SE_UNROLL
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
    t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
  }
  SE_UNROLL
  for (int i = 0; i < 8; ++i) r[i] = t[i];
}

constexpr int kColumns = 8;
inline void load_columns(const float* p, int64_t stride, vf (&column)[kColumns]) {
  SE_UNROLL
  for (int i = 0; i < 8; ++i) column[i] = load(p + i * stride);
  transpose(column);
}
inline vf from_integers(vf a) { return _mm256_cvtepi32_ps(_mm256_castps_si256(a)); }

}  // namespace SE_TARGET
}  // namespace se
