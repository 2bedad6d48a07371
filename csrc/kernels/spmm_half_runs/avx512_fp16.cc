// spmm_half_runs with AVX512-FP16: twice the multiply-adds of float an instruction.
#define SE_TARGET avx512_fp16
#include "simd/avx512.h"
#include "kernels/spmm_half_runs/kernel.h"
#include "kernels/spmm_runs/pair.inl.h"

namespace se {
namespace avx512_fp16 {

struct Halves {
  using vec = __m512h;
  using element = uint16_t;
  using weight = uint32_t;  // the same half twice, which one instruction broadcasts
  static constexpr int kWidth = 32, kFloats = 2;
  static vec zeros() { return _mm512_setzero_ph(); }
  static vec add(vec a, vec b) { return _mm512_add_ph(a, b); }
  static vec load(const element* p) { return _mm512_loadu_ph(p); }
  static vec broadcast(const weight* p) {
    return _mm512_castsi512_ph(_mm512_set1_epi32(static_cast<int>(*p)));
  }
  static vec multiply_add(vec w, vec x, vec acc) { return _mm512_fmadd_ph(w, x, acc); }
  static void widen(vec a, vf (&to)[2]) {
    const __m512i bits = _mm512_castph_si512(a);
    to[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(bits));
    to[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(bits, 1));
  }
};

// For panels of 16 tokens.
struct HalfVectors {
  using vec = __m256h;
  using element = uint16_t;
  using weight = uint32_t;
  static constexpr int kWidth = 16, kFloats = 1;
  static vec zeros() { return _mm256_setzero_ph(); }
  static vec add(vec a, vec b) { return _mm256_add_ph(a, b); }
  static vec load(const element* p) { return _mm256_loadu_ph(p); }
  static vec broadcast(const weight* p) {
    return _mm256_castsi256_ph(_mm256_set1_epi32(static_cast<int>(*p)));
  }
  static vec multiply_add(vec w, vec x, vec acc) { return _mm256_fmadd_ph(w, x, acc); }
  static void widen(vec a, vf (&to)[1]) { to[0] = _mm512_cvtph_ps(_mm256_castph_si256(a)); }
};

// bf16 times the powers of their rows, as pairs of equal halves. The first `both` weights belong to
// the first and the second row in turn, the others to the second.
inline void halve(const uint16_t* w, int64_t both, int64_t count, float first, float second,
                  uint32_t* to) {
  const vf a = set1(first), b = set1(second);
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t left = count - i, turns = both - i;
    const __mmask16 some = left >= 16 ? 0xFFFF : static_cast<__mmask16>((1 << left) - 1);
    const int firsts = turns >= 16 ? 0xFFFF : turns > 0 ? (1 << turns) - 1 : 0;
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, w + i));
    const vf power = _mm512_mask_blend_ps(static_cast<__mmask16>(firsts & 0x5555), b, a);
    const vf wide = mul(_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)), power);
    const __m512i half =
        _mm512_cvtepu16_epi32(_mm512_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm512_storeu_si512(to + i, _mm512_or_si512(half, _mm512_slli_epi32(half, 16)));
  }
}

// y (+)= sums / (power of the row) * (powers of the tokens).
template <class A, int V, int U>
inline void flush(const Sums<A, V, U>& sums, float power, const float* tokens, bool first,
                  float* y) {
  // At most the largest power: zero times Inf would be NaN.
  const vf inverse = set1(1.0f / power), most = set1(1.7014118e38f);
  SE_UNROLL
  for (int v = 0; v < V; ++v) {
    vf wide[A::kFloats];
    A::widen(sums.sum(v), wide);
    SE_UNROLL
    for (int i = 0; i < A::kFloats; ++i) {
      const int t = v * A::kWidth + i * kLanes;
      const vf scale = at_most(most, mul(inverse, load(tokens + t)));
      store(y + t, fmadd(wide[i], scale, first ? zero() : load(y + t)));
    }
  }
}

template <class A, int V>
inline void chunk_times_panel(const Runs& m, int64_t chunk, const uint16_t* panel, float* y) {
  constexpr int64_t T = V * A::kWidth;
  constexpr int U = 4 / V;
  alignas(64) uint32_t weights[2 * 256 + 16];
  const float* tokens = reinterpret_cast<const float*>(panel + m.in * T);
  const float* powers = m.powers + chunk * m.chunk;
  for (int64_t k = 0; k < m.k_blocks; ++k, panel += m.k_block * T) {
    const RunsStart &start = m.starts[chunk * m.k_blocks + k], &end = (&start)[1];
    const uint16_t* rows = m.rows + start.row;
    const uint8_t* columns = m.columns + start.column;
    const uint16_t* values = static_cast<const uint16_t*>(m.values) + start.value;
    for (int64_t s = start.stretch; s < end.stretch; ++s) {
      const Stretch n = m.stretches[s];
      const int64_t both = 2 * (n.shared + n.own), count = both + n.rest;
      for (int64_t pair = 0; pair < n.pairs; ++pair, rows += 2, values += count) {
        prefetch_results<T>(y + rows[2] * T);
        prefetch_results<T>(y + rows[3] * T);
        halve(values, both, count, powers[rows[0]], powers[rows[1]], weights);
        Sums<A, V, U> a, b;
        a.start(A::zeros());
        b.start(A::zeros());
        columns = multiply_pair<A, V, U>(n, weights, columns, panel, a, b);
        flush(a, powers[rows[0]], tokens, k == 0, y + rows[0] * T);
        flush(b, powers[rows[1]], tokens, k == 0, y + rows[1] * T);
      }
    }
  }
}

}  // namespace avx512_fp16
}  // namespace se

void se::spmm_half_runs_bf16_avx512_fp16(const Runs& w, int64_t chunk, const void* x,
                                         int64_t tokens, void* y) {
  using namespace avx512_fp16;
  const uint16_t* panel = static_cast<const uint16_t*>(x);
  float* sums = static_cast<float*>(y);
  if (tokens == 64) return chunk_times_panel<Halves, 2>(w, chunk, panel, sums);
  if (tokens == 32) return chunk_times_panel<Halves, 1>(w, chunk, panel, sums);
  chunk_times_panel<HalfVectors, 1>(w, chunk, panel, sums);
}
