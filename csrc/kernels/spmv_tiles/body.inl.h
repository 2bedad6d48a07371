// The algorithm of spmv_tiles over one kind of line; included once per compile target. A line holds
// the columns that are multiplied at once, of 16 rows, which lie in the lanes: each token's columns
// are broadcast, and nothing is summed across lanes.

namespace se {
namespace SE_TARGET {

// Line has the types Mask, Value, Expanded, X and Sum, kTogether, and the functions expand,
// multiply_add and store.
template <class Line, int T>
inline void tile(const typename Line::Mask* masks, const typename Line::Value*& values,
                 const typename Line::X* x, int64_t x_stride, typename Line::Sum (&sums)[T]) {
  SE_UNROLL
  for (int l = 0; l < 16; ++l) {
    using Mask = typename Line::Mask;
    const Mask mask = masks ? masks[l] : static_cast<Mask>(~Mask{0});
    prefetch(values);
    const typename Line::Expanded w = Line::expand(mask, values);
    values += __builtin_popcountll(mask);
    SE_UNROLL
    for (int t = 0; t < T; ++t)
      Line::multiply_add(w, x + t * x_stride + l * Line::kTogether, sums[t]);
  }
}

template <class Line, int T>
inline void bands(const Tiles& w, int64_t begin, int64_t end, const typename Line::X* x,
                  int64_t x_stride, float* y, int64_t y_stride) {
  using Mask = typename Line::Mask;
  for (int64_t b = begin; b < end; ++b) {
    const auto* values = static_cast<const typename Line::Value*>(w.values) + w.starts[b];
    const Mask* masks = w.masks ? static_cast<const Mask*>(w.masks) + 16 * w.tiles[b] : nullptr;
    typename Line::Sum sums[2][T];
    for (int half = 0; half < 2; ++half)
      for (int t = 0; t < T; ++t) sums[half][t] = Line::start();
    for (int64_t e = w.entries[b]; e < w.entries[b + 1]; ++e) {
      const typename Line::X* at = x + w.columns[e] * int64_t{16} * Line::kTogether;
      for (int half = 0; half < 2; ++half) {
        if (!(w.halves[e] >> half & 1)) continue;
        tile<Line, T>(masks, values, at, x_stride, sums[half]);
        if (masks) masks += 16;
      }
    }
    for (int half = 0; half < 2; ++half)
      for (int t = 0; t < T; ++t) {
        const int64_t row = b * Tiles::kBand + half * Tiles::kRows;
        Line::store(y + t * y_stride + row, sums[half][t],
                    w.corrections ? w.corrections + row : nullptr);
      }
  }
}

template <class Line>
inline void spmv_tiles(const Tiles& w, int64_t begin, int64_t end, const void* x, int64_t x_stride,
                       int64_t tokens, float* y, int64_t y_stride) {
  const auto* p = static_cast<const typename Line::X*>(x);
  const int64_t stride = x_stride / static_cast<int64_t>(sizeof(*p));
  if (tokens == 1) return bands<Line, 1>(w, begin, end, p, stride, y, y_stride);
  if (tokens == 2) return bands<Line, 2>(w, begin, end, p, stride, y, y_stride);
  if (tokens == 3) return bands<Line, 3>(w, begin, end, p, stride, y, y_stride);
  bands<Line, 4>(w, begin, end, p, stride, y, y_stride);
}

}  // namespace SE_TARGET
}  // namespace se
