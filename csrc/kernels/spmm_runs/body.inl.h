// The algorithm of spmm_runs over the vector layer and an arithmetic A; included once per compile
// target, after simd/<target>.h. Tokens lie in the lanes. Two rows are computed at a time, so that
// eight independent sums hide the latency of the multiply-add, and a shared column is loaded once
// for both.
//
// The loops are bound by loads where no column is shared (V + 1 for V multiply-adds), and by
// multiply-adds where all are.

namespace se {
namespace SE_TARGET {

// Reads the weights of a pair. Floats and quads are used in place; WideWeights widens bf16 into a
// buffer that stays in L1.
template <class A>
struct Weights {
  const typename A::weight* read(const void* values, int64_t first, int64_t) {
    return static_cast<const typename A::weight*>(values) + first;
  }
};

struct WideWeights {
  alignas(64) float wide[2 * 256 + kLanes];
  const float* read(const void* values, int64_t first, int64_t count) {
    return widen(static_cast<const bf16*>(values) + first, count, wide);
  }
};

template <class A, class W, int V>
inline void multiply_k_block(const Runs& m, const RunsStart& start, const RunsStart& end,
                             const typename A::element* x, typename A::element* y,
                             const int32_t* corrections, bool first) {
  constexpr int64_t T = V * A::kWidth;
  constexpr int U = 4 / V;
  W weights;
  const uint16_t* rows = m.rows + start.row;
  const uint8_t* columns = m.columns + start.column;
  int64_t value = start.value;
  for (int64_t s = start.stretch; s < end.stretch; ++s) {
    const Stretch n = m.stretches[s];
    const int64_t count = 2 * (n.shared + n.own) + n.rest;
    for (int64_t pair = 0; pair < n.pairs; ++pair, rows += 2, value += count) {
      typename A::element *ya = y + rows[0] * T, *yb = y + rows[1] * T;
      prefetch_results<T>(y + rows[2] * T);
      prefetch_results<T>(y + rows[3] * T);
      const auto* w = weights.read(m.values, value, count);
      Sums<A, V, U> a, b;
      if (first) {
        a.start(A::start(corrections, rows[0]));
        b.start(A::start(corrections, rows[1]));
      } else {
        a.load(ya);
        b.load(yb);
      }
      columns = multiply_pair<A, V, U>(n, w, columns, x, a, b);
      a.store(ya);
      b.store(yb);
    }
  }
}

template <class A, class W, int V>
inline void chunk_times_panel(const Runs& m, int64_t chunk, const void* x, void* y) {
  using E = typename A::element;
  const E* panel = static_cast<const E*>(x);
  const int32_t* corrections = m.corrections ? m.corrections + chunk * m.chunk : nullptr;
  for (int64_t b = 0; b < m.k_blocks; ++b, panel += m.k_block * V * A::kWidth) {
    const RunsStart* start = m.starts + chunk * m.k_blocks + b;
    multiply_k_block<A, W, V>(m, start[0], start[1], panel, static_cast<E*>(y), corrections,
                              b == 0);
  }
}

// Panels of 1, 2 or 4 vectors per feature.
template <class A, class W>
inline void spmm_runs(const Runs& m, int64_t chunk, const void* x, int64_t tokens, void* y) {
  if (tokens == 4 * kLanes) return chunk_times_panel<A, W, 4>(m, chunk, x, y);
  if (tokens == 2 * kLanes) return chunk_times_panel<A, W, 2>(m, chunk, x, y);
  chunk_times_panel<A, W, 1>(m, chunk, x, y);
}

struct Floats {
  using vec = vf;
  using element = float;
  using weight = float;
  static constexpr int kWidth = kLanes;
  static vec zeros() { return zero(); }
  static vec start(const int32_t*, int64_t) { return zero(); }
  static vec add(vec a, vec b) { return SE_TARGET::add(a, b); }
  static vec load(const float* p) { return SE_TARGET::load(p); }
  static void store(float* p, vec a) { SE_TARGET::store(p, a); }
  static vec broadcast(const float* p) { return SE_TARGET::broadcast(p); }
  static vec multiply_add(vec w, vec x, vec acc) { return fmadd(w, x, acc); }
};

}  // namespace SE_TARGET
}  // namespace se
