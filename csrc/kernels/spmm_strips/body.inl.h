// The algorithm of spmm_strips over the vector layer; included once per compile target, after
// simd/<target>.h. Tokens lie in the lanes: an entry is one broadcast weight times unit-stride
// loads, whatever the pattern. Nothing is gathered, scattered or transposed.

namespace se {
namespace SE_TARGET {

// R x V vectors of accumulators stay in registers over the entries of one (K-block, strip).
template <int T, int R, int V>
inline void tile(const float* w, const uint16_t* columns, int64_t entries, int64_t height,
                 const float* x, float* y, bool first) {
  vf acc[R][V];
  SE_UNROLL
  for (int r = 0; r < R; ++r) {
    SE_UNROLL
    for (int v = 0; v < V; ++v) acc[r][v] = first ? zero() : load(y + r * T + v * kLanes);
  }
  for (int64_t e = 0; e < entries; ++e, w += height) {
    const float* xk = x + columns[e] * int64_t{T};
    vf xv[V];
    SE_UNROLL
    for (int v = 0; v < V; ++v) xv[v] = load(xk + v * kLanes);
    SE_UNROLL
    for (int r = 0; r < R; ++r) {
      const vf wr = broadcast(w + r);
      SE_UNROLL
      for (int v = 0; v < V; ++v) acc[r][v] = fmadd(wr, xv[v], acc[r][v]);
    }
  }
  SE_UNROLL
  for (int r = 0; r < R; ++r) {
    SE_UNROLL
    for (int v = 0; v < V; ++v) store(y + r * T + v * kLanes, acc[r][v]);
  }
}

// Rows r0 .. r0 + R of every strip, over a panel of T tokens. Sizes are template
// arguments: the loops are too short to choose sizes inside them.
template <class W, int T, int R>
inline void rows(const Strips& m, int64_t begin, int64_t end, int64_t r0, const float* x,
                 float* y) {
  constexpr int kWidth = T / kLanes;
  constexpr int V = kAccumulators / R < kWidth ? kAccumulators / R : kWidth;
  const W* values = static_cast<const W*>(m.values) + r0;
  y += r0 * T;
  constexpr int64_t kBuffer = 4096;  // floats: 16 KiB of widened weights at a time stay in L1
  alignas(64) float buffer[kBuffer + kLanes];
  const int64_t at_once = kBuffer / m.height > 1 ? kBuffer / m.height : 1;
  for (int64_t b = 0; b < m.k_blocks; ++b, x += m.k_block * T) {
    const int32_t* pointers = m.pointers + b * m.strips;
    for (int64_t s = begin; s < end; ++s) {
      const int64_t last = pointers[s + 1];
      float* ys = y + (s - begin) * m.height * T;
      bool first = b == 0;
      for (int64_t e = pointers[s]; e < last || first; e += at_once, first = false) {
        const int64_t entries = last - e < at_once ? last - e : at_once;
        const float* w = widen(values + e * m.height, entries * m.height - r0, buffer);
        for (int v = 0; v < kWidth; v += V)
          tile<T, R, V>(w, m.columns + e, entries, m.height, x + v * kLanes, ys + v * kLanes,
                        first);
      }
    }
  }
}

// Strips of any height.
template <class W, int T>
inline void panel(const Strips& m, int64_t begin, int64_t end, const float* x, float* y) {
  // As many rows as leave room for the vectors of a whole panel, whose loads most rows then share.
  constexpr int kRows = kAccumulators * kLanes / T > 4 ? kAccumulators * kLanes / T : 4;
  int64_t r = 0;
  for (; r + kRows <= m.height; r += kRows) rows<W, T, kRows>(m, begin, end, r, x, y);
  if (kRows > 8 && r + 8 <= m.height) rows<W, T, 8>(m, begin, end, r, x, y), r += 8;
  if (kRows > 4 && r + 4 <= m.height) rows<W, T, 4>(m, begin, end, r, x, y), r += 4;
  if (r + 2 <= m.height) rows<W, T, 2>(m, begin, end, r, x, y), r += 2;
  if (r < m.height) rows<W, T, 1>(m, begin, end, r, x, y);
}

template <class W>
inline void spmm_strips(const Strips& m, int64_t begin, int64_t end, const float* x, int64_t tokens,
                        float* y) {
  if (tokens == 64) return panel<W, 64>(m, begin, end, x, y);
  if (tokens == 32) return panel<W, 32>(m, begin, end, x, y);
  panel<W, 16>(m, begin, end, x, y);
}

}  // namespace SE_TARGET
}  // namespace se
