// Sixteen floats in a zmm register. The names are documented in simd/scalar.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define SE_UNROLL _Pragma("GCC unroll 16")

namespace se {
namespace SE_TARGET {

using vf = __m512;
struct bf16 {
  uint16_t bits;
};
constexpr int kLanes = 16;
constexpr int kAccumulators = 16;

inline vf zero() { return _mm512_setzero_ps(); }
inline vf set1(float a) { return _mm512_set1_ps(a); }
inline vf load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, vf a) { _mm512_storeu_ps(p, a); }
// Bypasses the caches where p is aligned to a cache line.
inline void stream(float* p, vf a) {
  if (reinterpret_cast<uintptr_t>(p) % 64 == 0)
    _mm512_stream_ps(p, a);
  else
    store(p, a);
}
inline vf load(const bf16* p) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
inline vf broadcast(const float* p) { return _mm512_set1_ps(*p); }

inline vf fmadd(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
inline vf add(vf a, vf b) { return _mm512_add_ps(a, b); }
inline vf sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
inline vf mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
inline vf div(vf a, vf b) { return _mm512_div_ps(a, b); }
// An estimate of 14 bits and a step of Newton: a quarter of the time of a division.
inline vf inverse(vf a) {
  const vf near = _mm512_rcp14_ps(a);
  return mul(near, _mm512_fnmadd_ps(a, near, set1(2.0f)));
}
inline vf at_least(vf bound, vf a) { return _mm512_max_ps(bound, a); }
inline vf at_most(vf bound, vf a) { return _mm512_min_ps(bound, a); }
inline vf round_even(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }
inline vf scale_by_power(vf a, vf n) { return _mm512_scalef_ps(a, n); }
inline vf abs(vf a) { return _mm512_abs_ps(a); }
inline vf copy_sign(vf magnitude, vf sign) {
  const __m512i bit = _mm512_set1_epi32(static_cast<int>(0x80000000u));
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(bit, _mm512_castps_si512(sign),
                                                       _mm512_castps_si512(magnitude), 0xCA));
}

// bf16 bits of each lane, round to nearest even, in the low half of 32-bit lanes; NaN stays NaN.
inline __m512i round_to_bf16(vf a) {
  const __m512i u = _mm512_castps_si512(a);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(u, _mm512_set1_epi32(0x00400000));
  return _mm512_srli_epi32(_mm512_mask_blend_epi32(nan, up, quiet), 16);
}
inline vf nearest_bf16(vf a) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(round_to_bf16(a), 16));
}
inline void store(bf16* p, vf a) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(round_to_bf16(a)));
}

inline vf load(const int32_t* p) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(p)); }
inline void store_offset_bytes(uint8_t* p, vf a) {
  const __m512i wide = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(128));
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(wide));
}
inline void store_offset_quads(float* p, vf a, vf b, vf c, vf d) {
  const auto byte = [](vf x) {
    return _mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(128));
  };
  const __m512i low = _mm512_or_si512(byte(a), _mm512_slli_epi32(byte(b), 8));
  const __m512i high = _mm512_or_si512(byte(c), _mm512_slli_epi32(byte(d), 8));
  _mm512_storeu_si512(p, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

inline vf load(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}

using Picks = __m512i;
inline Picks load_picks(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
}
inline vf pick(const float* window, Picks which) {
  return _mm512_permutex2var_ps(load(window), which, load(window + 16));
}

// r[i][j] <-> r[j][i]: unpack pairs, then quads, then move 128-bit quarters.
inline void transpose(vf (&r)[16]) {
  __m512 t[16];
  SE_UNROLL
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  SE_UNROLL
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xEE);
    r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
  SE_UNROLL
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xDD);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xDD);
  }
  SE_UNROLL
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xDD);
    r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xDD);
  }
}

// Half as many columns as lanes: with one row of memory for each column, more of them than the TLB
// has entries for stores take several times as long to write.
constexpr int kColumns = 8;
inline void load_columns(const float* p, int64_t stride, vf (&column)[kColumns]) {
  __m512 t[8];
  const auto rows = [&](int a, int b) {
    const __m256 low = _mm256_loadu_ps(p + a * stride), high = _mm256_loadu_ps(p + b * stride);
    return _mm512_castpd_ps(_mm512_insertf64x4(_mm512_castps_pd(_mm512_castps256_ps512(low)),
                                               _mm256_castps_pd(high), 1));
  };
  SE_UNROLL
  for (int i = 0; i < 8; i += 2) {
    const int a = i < 4 ? i : i + 4;  // rows 0 to 3 and 8 to 11
    const __m512 even = rows(a, a + 4), odd = rows(a + 1, a + 5);
    t[i] = _mm512_unpacklo_ps(even, odd);
    t[i + 1] = _mm512_unpackhi_ps(even, odd);
  }
  SE_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int from = i / 2, imm = i % 2;
    const auto pick = [&](int q) {
      const __m512 a = t[q + from], b = t[q + from + 2];
      return imm ? _mm512_shuffle_ps(a, b, 0xEE) : _mm512_shuffle_ps(a, b, 0x44);
    };
    const __m512 low = pick(0), high = pick(4);
    column[i] = _mm512_shuffle_f32x4(low, high, 0x88);
    column[i + 4] = _mm512_shuffle_f32x4(low, high, 0xDD);
  }
}
inline vf from_integers(vf a) { return _mm512_cvtepi32_ps(_mm512_castps_si512(a)); }

}  // namespace SE_TARGET
}  // namespace se
