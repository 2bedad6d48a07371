// The algorithm of spmv_groups over a Picker, which finds the activations of the 16 values of a
// step; included once per compile target, after simd/<target>.h. Positions are relative to a group,
// so a few bits per value are read besides the values.

namespace se {
namespace SE_TARGET {

// Picker(const Groups&) has where(positions of a step), select(x, where, p) for vector p of the
// activations, and sum(vector).
template <class W, class Picker, int T>
inline void rows(const Groups& m, int64_t begin, int64_t end, const float* x, int64_t x_stride,
                 float* y, int64_t y_stride) {
  constexpr int P = 16 / kLanes;
  const Picker picker(m);
  for (int64_t r = begin; r < end; ++r) {
    const W* values = static_cast<const W*>(m.values) + r * m.steps * 16;
    const uint8_t* positions = m.positions + r * m.steps * 2 * m.bits;
    vf acc[T][P];
    SE_UNROLL
    for (int i = 0; i < T * P; ++i) acc[i / P][i % P] = zero();
    for (int64_t s = 0; s < m.steps; ++s) {
      prefetch(values + s * 16);
      prefetch(positions + s * 2 * m.bits, kPrefetchDistance / 4);
      const auto where = picker.where(positions + s * 2 * m.bits);
      SE_UNROLL
      for (int p = 0; p < P; ++p) {
        const vf w = load(values + s * 16 + p * kLanes);
        SE_UNROLL
        for (int t = 0; t < T; ++t)
          acc[t][p] = fmadd(w, picker.select(x + t * x_stride + s * m.span(), where, p), acc[t][p]);
      }
    }
    SE_UNROLL
    for (int t = 0; t < T; ++t) {
      vf sum = acc[t][0];
      SE_UNROLL
      for (int p = 1; p < P; ++p) sum = add(sum, acc[t][p]);
      y[t * y_stride + r] = Picker::sum(sum);
    }
  }
}

template <class W, class Picker>
inline void spmv_groups(const Groups& m, int64_t begin, int64_t end, const float* x,
                        int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  if (tokens == 1) return rows<W, Picker, 1>(m, begin, end, x, x_stride, y, y_stride);
  if (tokens == 2) return rows<W, Picker, 2>(m, begin, end, x, x_stride, y, y_stride);
  if (tokens == 3) return rows<W, Picker, 3>(m, begin, end, x, x_stride, y, y_stride);
  rows<W, Picker, 4>(m, begin, end, x, x_stride, y, y_stride);
}

}  // namespace SE_TARGET
}  // namespace se
