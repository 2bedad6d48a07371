// spmm_strips with vdpbf16ps, which multiplies pairs of columns. Two entries are processed at a
// time; their slices of the panel are interleaved once for all rows of the strip. With the token
// order of bf16 panels (kernels/panel_io/kernel.h), unpacklo yields the first and unpackhi the last
// 16 of 32 tokens.
#define SE_TARGET avx512_bf16
#include "simd/avx512.h"
#include "kernels/spmm_strips/kernel.h"

namespace se {
namespace SE_TARGET {

// R rows x V groups of 32 tokens.
template <int R, int V>
struct Sums {
  vf acc[R][2 * V];
};

// acc += pair of weights x pair of columns. For the last of an odd number of columns `second` is
// false: both the weight and the activations of the missing column are zero, so that no Inf or NaN
// is multiplied by zero.
template <int R, int V>
inline void multiply(Sums<R, V>& sums, const uint16_t* wa, const uint16_t* wb, const uint16_t* xa,
                     const uint16_t* xb, bool second) {
  __m512bh lo[V], hi[V];
  SE_UNROLL
  for (int v = 0; v < V; ++v) {
    const __m512i a = _mm512_loadu_si512(xa + v * 32);
    const __m512i b = second ? _mm512_loadu_si512(xb + v * 32) : _mm512_setzero_si512();
    lo[v] = (__m512bh)_mm512_unpacklo_epi16(a, b);
    hi[v] = (__m512bh)_mm512_unpackhi_epi16(a, b);
  }
  SE_UNROLL
  for (int r = 0; r < R; ++r) {
    const uint32_t pair = wa[r] | (second ? static_cast<uint32_t>(wb[r]) << 16 : 0);
    const __m512bh wr = (__m512bh)_mm512_set1_epi32(static_cast<int>(pair));
    SE_UNROLL
    for (int v = 0; v < V; ++v) {
      sums.acc[r][2 * v] = _mm512_dpbf16_ps(sums.acc[r][2 * v], lo[v], wr);
      sums.acc[r][2 * v + 1] = _mm512_dpbf16_ps(sums.acc[r][2 * v + 1], hi[v], wr);
    }
  }
}

template <int T, int R, int V>
inline void tile(const uint16_t* w, const uint16_t* columns, int64_t entries, int64_t height,
                 const uint16_t* x, float* y, bool first) {
  Sums<R, V> sums;
  SE_UNROLL
  for (int r = 0; r < R; ++r) {
    SE_UNROLL
    for (int v = 0; v < 2 * V; ++v) sums.acc[r][v] = first ? zero() : load(y + r * T + v * 16);
  }
  int64_t e = 0;
  for (; e + 2 <= entries; e += 2, w += 2 * height)
    multiply(sums, w, w + height, x + columns[e] * int64_t{T}, x + columns[e + 1] * int64_t{T},
             true);
  if (e < entries) multiply(sums, w, w, x + columns[e] * int64_t{T}, x, false);
  SE_UNROLL
  for (int r = 0; r < R; ++r) {
    SE_UNROLL
    for (int v = 0; v < 2 * V; ++v) store(y + r * T + v * 16, sums.acc[r][v]);
  }
}

// Rows r0 .. r0 + R of every strip, over a panel of T tokens.
template <int T, int R>
inline void rows(const Strips& m, int64_t begin, int64_t end, int64_t r0, const uint16_t* x,
                 float* y) {
  constexpr int V = R <= 4 ? T / 32 : 1;
  const uint16_t* values = static_cast<const uint16_t*>(m.values) + r0;
  y += r0 * T;
  for (int64_t b = 0; b < m.k_blocks; ++b, x += m.k_block * T) {
    const int32_t* pointers = m.pointers + b * m.strips;
    for (int64_t s = begin; s < end; ++s) {
      const int64_t e = pointers[s], entries = pointers[s + 1] - e;
      if (!entries && b) continue;
      float* ys = y + (s - begin) * m.height * T;
      for (int t = 0; t < T; t += 32 * V)
        tile<T, R, V>(values + e * m.height, m.columns + e, entries, m.height, x + t, ys + t,
                      b == 0);
    }
  }
}

template <int T>
inline void panel(const Strips& m, int64_t begin, int64_t end, const uint16_t* x, float* y) {
  int64_t r = 0;
  for (; r + 8 <= m.height; r += 8) rows<T, 8>(m, begin, end, r, x, y);
  if (r + 4 <= m.height) rows<T, 4>(m, begin, end, r, x, y), r += 4;
  if (r + 2 <= m.height) rows<T, 2>(m, begin, end, r, x, y), r += 2;
  if (r < m.height) rows<T, 1>(m, begin, end, r, x, y);
}

}  // namespace SE_TARGET
}  // namespace se

void se::spmm_strips_bf16_avx512_bf16(const Strips& m, int64_t begin, int64_t end, const void* x,
                                      int64_t tokens, float* y) {
  const uint16_t* panel = static_cast<const uint16_t*>(x);
  if (tokens == 64)
    avx512_bf16::panel<64>(m, begin, end, panel, y);
  else
    avx512_bf16::panel<32>(m, begin, end, panel, y);
}
