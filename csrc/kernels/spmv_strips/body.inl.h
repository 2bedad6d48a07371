// The algorithm of spmv_strips over the vector layer. With few tokens, output rows lie in the
// lanes: tall strips are computed by vectors, whose weights serve all tokens, and single rows by
// four independent scalar sums.

namespace se {
namespace SE_TARGET {

inline float to_float(float a) { return a; }
inline float to_float(bf16 a) {
  const uint32_t u = static_cast<uint32_t>(a.bits) << 16;
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}

template <class W>
inline float row(const W* w, const uint16_t* columns, int64_t entries, const float* x) {
  float sum[4] = {0, 0, 0, 0};
  int64_t e = 0;
  for (; e + 4 <= entries; e += 4) {
    SE_UNROLL
    for (int i = 0; i < 4; ++i) sum[i] += to_float(w[e + i]) * x[columns[e + i]];
  }
  for (; e < entries; ++e) sum[e & 3] += to_float(w[e]) * x[columns[e]];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// Adds kLanes rows of a strip to y. Two sums per token hide the latency of the multiply-add.
template <class W, int T>
inline void lanes_of_rows(const W* w, const uint16_t* columns, int64_t entries, int64_t height,
                          const float* x, int64_t x_stride, float* y, int64_t y_stride) {
  constexpr int U = T > 4 ? 1 : 2;
  vf acc[U][T];
  SE_UNROLL
  for (int t = 0; t < T; ++t)
    acc[0][t] = load(y + t * y_stride), acc[U - 1][t] = U > 1 ? zero() : acc[0][t];
  const auto entry = [&](int64_t e, vf(&into)[T]) __attribute__((always_inline)) {
    const vf wv = load(w + e * height);
    SE_UNROLL
    for (int t = 0; t < T; ++t)
      into[t] = fmadd(wv, broadcast(x + columns[e] + t * x_stride), into[t]);
  };
  int64_t e = 0;
  for (; e + U <= entries; e += U) {
    entry(e, acc[0]);
    if (U > 1) entry(e + 1, acc[U - 1]);
  }
  if (U > 1 && e < entries) entry(e, acc[0]);
  SE_UNROLL
  for (int t = 0; t < T; ++t)
    store(y + t * y_stride, U > 1 ? add(acc[0][t], acc[U - 1][t]) : acc[0][t]);
}

template <class W, int R>
inline void few_rows(const W* w, const uint16_t* columns, int64_t entries, int64_t height,
                     const float* x, float* y) {
  float sum[R] = {};
  for (int64_t e = 0; e < entries; ++e) {
    SE_UNROLL
    for (int r = 0; r < R; ++r) sum[r] += to_float(w[e * height + r]) * x[columns[e]];
  }
  for (int r = 0; r < R; ++r) y[r] += sum[r];
}

// The remaining rows of a strip, from row r on, for one token.
template <class W>
inline void last_rows(const W* w, const uint16_t* columns, int64_t entries, int64_t height,
                      int64_t r, const float* x, float* y) {
  if (height == 1) {
    *y += row(w, columns, entries, x);
    return;
  }
  for (; r + 4 <= height; r += 4) few_rows<W, 4>(w + r, columns, entries, height, x, y + r);
  for (; r + 2 <= height; r += 2) few_rows<W, 2>(w + r, columns, entries, height, x, y + r);
  for (; r < height; ++r) few_rows<W, 1>(w + r, columns, entries, height, x, y + r);
}

template <class W, int T>
inline void strips(const Strips& m, int64_t begin, int64_t end, const float* x, int64_t x_stride,
                   float* y, int64_t y_stride) {
  const W* values = static_cast<const W*>(m.values);
  const int64_t height = m.height;
  for (int t = 0; t < T; ++t)
    for (int64_t i = begin * height; i < end * height; ++i) y[t * y_stride + i] = 0;
  for (int64_t b = 0; b < m.k_blocks; ++b, x += m.k_block) {
    const int32_t* pointers = m.pointers + b * m.strips;
    for (int64_t s = begin; s < end; ++s) {
      const int64_t e = pointers[s], entries = pointers[s + 1] - e;
      if (!entries) continue;
      const W* w = values + e * height;
      const uint16_t* columns = m.columns + e;
      float* to = y + s * height;
      int64_t r = 0;
      for (; r + kLanes <= height; r += kLanes)
        lanes_of_rows<W, T>(w + r, columns, entries, height, x, x_stride, to + r, y_stride);
      for (int t = 0; t < T && r < height; ++t)
        last_rows(w, columns, entries, height, r, x + t * x_stride, to + t * y_stride);
    }
  }
}

template <class W>
inline void spmv_strips(const Strips& m, int64_t begin, int64_t end, const float* x,
                        int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  switch (tokens) {
    case 1:
      return strips<W, 1>(m, begin, end, x, x_stride, y, y_stride);
    case 2:
      return strips<W, 2>(m, begin, end, x, x_stride, y, y_stride);
    case 3:
      return strips<W, 3>(m, begin, end, x, x_stride, y, y_stride);
    case 4:
      return strips<W, 4>(m, begin, end, x, x_stride, y, y_stride);
    case 5:
      return strips<W, 5>(m, begin, end, x, x_stride, y, y_stride);
    case 6:
      return strips<W, 6>(m, begin, end, x, x_stride, y, y_stride);
    case 7:
      return strips<W, 7>(m, begin, end, x, x_stride, y, y_stride);
    default:
      return strips<W, 8>(m, begin, end, x, x_stride, y, y_stride);
  }
}

}  // namespace SE_TARGET
}  // namespace se
