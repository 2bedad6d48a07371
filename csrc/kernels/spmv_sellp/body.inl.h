// The algorithm of spmv_sellp over the vector layer; included once per compile target, after
// simd/<target>.h. Rows lie in the lanes: there are no sums across lanes, no branches inside a
// group and, where a window fits two registers, no gathers. Even and odd steps add to separate
// sums, which hides the latency of the multiply-add.

namespace se {
namespace SE_TARGET {

template <class W, int T>
inline void group(const W* values, const uint8_t* picks, const uint16_t* offsets, int64_t steps,
                  const float* x, int64_t x_stride, float (&sums)[T][16]) {
  constexpr int P = 16 / kLanes;  // vectors of a step
  vf acc[2][T][P];
  SE_UNROLL
  for (int i = 0; i < 2 * T * P; ++i) acc[i / (T * P)][i / P % T][i % P] = zero();
  const auto step = [&](int64_t s, vf(&into)[T][P]) __attribute__((always_inline)) {
    const float* window = x + offsets[s];
    prefetch(values + s * 16);
    prefetch(picks + s * 16, kPrefetchDistance / 2);
    SE_UNROLL
    for (int p = 0; p < P; ++p) {
      const vf w = load(values + s * 16 + p * kLanes);
      const Picks which = load_picks(picks + s * 16 + p * kLanes);
      SE_UNROLL
      for (int t = 0; t < T; ++t)
        into[t][p] = fmadd(w, pick(window + t * x_stride, which), into[t][p]);
    }
  };
  int64_t s = 0;
  for (; s + 2 <= steps; s += 2) {
    step(s, acc[0]);
    step(s + 1, acc[1]);
  }
  if (s < steps) step(s, acc[0]);
  SE_UNROLL
  for (int t = 0; t < T; ++t) {
    SE_UNROLL
    for (int p = 0; p < P; ++p) store(sums[t] + p * kLanes, add(acc[0][t][p], acc[1][t][p]));
  }
}

template <class W, int T>
inline void groups(const SellP& m, int64_t begin, int64_t end, const float* x, int64_t x_stride,
                   float* y, int64_t y_stride) {
  const W* values = static_cast<const W*>(m.values);
  for (int64_t g = begin; g < end; ++g) {
    const int64_t s = m.starts[g];
    alignas(64) float sums[T][16];
    group<W, T>(values + s * 16, m.picks + s * 16, m.offsets + s, m.starts[g + 1] - s, x, x_stride,
                sums);
    for (int t = 0; t < T; ++t)
      for (int i = 0; i < 16; ++i) y[t * y_stride + m.rows[g * 16 + i]] = sums[t][i];
  }
}

template <class W>
inline void spmv_sellp(const SellP& m, int64_t begin, int64_t end, const float* x, int64_t x_stride,
                       int64_t tokens, float* y, int64_t y_stride) {
  if (tokens == 1) return groups<W, 1>(m, begin, end, x, x_stride, y, y_stride);
  if (tokens == 2) return groups<W, 2>(m, begin, end, x, x_stride, y, y_stride);
  if (tokens == 3) return groups<W, 3>(m, begin, end, x, x_stride, y, y_stride);
  groups<W, 4>(m, begin, end, x, x_stride, y, y_stride);
}

}  // namespace SE_TARGET
}  // namespace se
