// The algorithm of spmm_runs over the vector layer and one arithmetic; included once per ISA, after
// simd/<isa>.h. Tokens lie in the lanes. Two rows are in flight, so that 2 V independent sums hide
// the latency of the multiply-add, and a shared column is loaded once for both.
//
// The loops are bound by loads where nothing is shared (V + 1 for V multiply-adds) and by
// multiply-adds where everything is.

namespace se {
namespace SE_ISA {

// The weights of a pair as the arithmetic multiplies them: floats and quads as they lie in memory,
// bf16 widened once into a buffer that stays in L1. Widening inside the loop would cost a shift per
// weight on the ports of the multiply-add.
template <class A>
struct Weights {
  const typename A::weight* take(const void* values, int64_t first, int64_t) {
    return static_cast<const typename A::weight*>(values) + first;
  }
};

struct WideWeights {
  alignas(64) float wide[2 * 256 + kLanes];
  const float* take(const void* values, int64_t first, int64_t count) {
    const bf16* p = static_cast<const bf16*>(values) + first;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(wide + i, load(p + i));
    for (; i < count; ++i) {
      const uint32_t u = static_cast<uint32_t>(p[i].bits) << 16;
      __builtin_memcpy(wide + i, &u, 4);
    }
    return wide;
  }
};

template <class A, int V>
struct Sums {
  typename A::vec a[V], b[V];
};

template <class A, int V>
inline void multiply(typename A::vec (&acc)[V], typename A::vec w, const typename A::element* x) {
  SE_UNROLL
  for (int v = 0; v < V; ++v) acc[v] = A::multiply_add(w, A::load(x + v * kLanes), acc[v]);
}

template <class A, int V>
inline void look_ahead(const typename A::element* y) {
  SE_UNROLL
  for (int v = 0; v < V; v += 16 / kLanes > 1 ? 16 / kLanes : 1)
    __builtin_prefetch(y + v * kLanes, 1, 3);
}

template <class A, class W, int V>
inline void block(const Runs& m, const RunsStart& start, const RunsStart& end,
                  const typename A::element* x, typename A::element* y, const int32_t* corrections,
                  bool first) {
  constexpr int64_t T = V * kLanes;
  W weights;
  const uint16_t* rows = m.rows + start.row;
  const uint8_t* columns = m.columns + start.column;
  int64_t value = start.value;
  for (int64_t s = start.stretch; s < end.stretch; ++s) {
    const Stretch n = m.stretches[s];
    const int64_t count = 2 * (n.shared + n.own) + n.rest;
    for (int64_t pair = 0; pair < n.pairs; ++pair, rows += 2, value += count) {
      typename A::element *ya = y + rows[0] * T, *yb = y + rows[1] * T;
      look_ahead<A, V>(y + rows[2] * T);
      look_ahead<A, V>(y + rows[3] * T);
      const auto* w = weights.take(m.values, value, count);
      Sums<A, V> sums;
      SE_UNROLL
      for (int v = 0; v < V; ++v) {
        sums.a[v] = first ? A::start(corrections, rows[0]) : A::load(ya + v * kLanes);
        sums.b[v] = first ? A::start(corrections, rows[1]) : A::load(yb + v * kLanes);
      }
      for (int64_t i = 0; i < n.shared; ++i, w += 2) {
        const typename A::element* xk = x + *columns++ * T;
        typename A::vec xv[V];
        SE_UNROLL
        for (int v = 0; v < V; ++v) xv[v] = A::load(xk + v * kLanes);
        const auto wa = A::broadcast(w), wb = A::broadcast(w + 1);
        SE_UNROLL
        for (int v = 0; v < V; ++v) sums.a[v] = A::multiply_add(wa, xv[v], sums.a[v]);
        SE_UNROLL
        for (int v = 0; v < V; ++v) sums.b[v] = A::multiply_add(wb, xv[v], sums.b[v]);
      }
      for (int64_t i = 0; i < n.own; ++i, w += 2, columns += 2) {
        multiply<A, V>(sums.a, A::broadcast(w), x + columns[0] * T);
        multiply<A, V>(sums.b, A::broadcast(w + 1), x + columns[1] * T);
      }
      for (int64_t i = 0; i < n.rest; ++i)
        multiply<A, V>(sums.b, A::broadcast(w++), x + *columns++ * T);
      SE_UNROLL
      for (int v = 0; v < V; ++v) {
        A::store(ya + v * kLanes, sums.a[v]);
        A::store(yb + v * kLanes, sums.b[v]);
      }
    }
  }
}

template <class A, class W, int V>
inline void chunk_times_panel(const Runs& m, int64_t chunk, const void* x, void* y) {
  using E = typename A::element;
  const E* panel = static_cast<const E*>(x);
  const int32_t* corrections = m.corrections ? m.corrections + chunk * m.chunk : nullptr;
  for (int64_t b = 0; b < m.blocks; ++b, panel += m.block * V * kLanes) {
    const RunsStart* start = m.starts + chunk * m.blocks + b;
    block<A, W, V>(m, start[0], start[1], panel, static_cast<E*>(y), corrections, b == 0);
  }
}

// Panels of 1, 2 or 4 vectors a feature.
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
  static vec start(const int32_t*, int64_t) { return zero(); }
  static vec load(const float* p) { return SE_ISA::load(p); }
  static void store(float* p, vec a) { SE_ISA::store(p, a); }
  static vec broadcast(const float* p) { return SE_ISA::broadcast(p); }
  static vec multiply_add(vec w, vec x, vec acc) { return fmadd(w, x, acc); }
};

}  // namespace SE_ISA
}  // namespace se
