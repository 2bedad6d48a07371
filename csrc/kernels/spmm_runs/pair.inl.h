// Two rows of a K-block times a panel, over the vector layer and an arithmetic A, for spmm_runs and
// spmm_half_runs. A has the types vec (kWidth lanes), element (of the panel) and weight, and the
// functions zeros, add, load, broadcast, multiply_add and, where sums are elements, store.

namespace se {
namespace SE_TARGET {

// The sums of a row. A narrow panel has too few vectors to hide the latency of the multiply-add, so
// U consecutive steps add to separate sums.
template <class A, int V, int U>
struct Sums {
  typename A::vec acc[U][V];

  void load(const typename A::element* y) {
    SE_UNROLL
    for (int v = 0; v < V; ++v) acc[0][v] = A::load(y + v * A::kWidth);
    clear_rest();
  }
  void start(typename A::vec first) {
    SE_UNROLL
    for (int v = 0; v < V; ++v) acc[0][v] = first;
    clear_rest();
  }
  void clear_rest() {
    SE_UNROLL
    for (int i = V; i < U * V; ++i) acc[i / V][i % V] = A::zeros();
  }
  void add(int u, typename A::vec w, const typename A::vec (&x)[V]) {
    SE_UNROLL
    for (int v = 0; v < V; ++v) acc[u][v] = A::multiply_add(w, x[v], acc[u][v]);
  }
  void add(int u, typename A::vec w, const typename A::element* x) {
    SE_UNROLL
    for (int v = 0; v < V; ++v)
      acc[u][v] = A::multiply_add(w, A::load(x + v * A::kWidth), acc[u][v]);
  }
  typename A::vec sum(int v) const {
    typename A::vec all = acc[0][v];
    SE_UNROLL
    for (int u = 1; u < U; ++u) all = A::add(all, acc[u][v]);
    return all;
  }
  void store(typename A::element* y) const {
    SE_UNROLL
    for (int v = 0; v < V; ++v) A::store(y + v * A::kWidth, sum(v));
  }
};

template <int64_t T, class E>
inline void prefetch_results(const E* y) {
  SE_UNROLL
  for (int64_t i = 0; i < T; i += 16) __builtin_prefetch(y + i, 1, 3);
}

// Adds the products of a pair with the lengths n to the sums of both rows. w are its weights, x is
// the panel's slice of the K-block.
template <class A, int V, int U>
__attribute__((always_inline)) inline const uint8_t* multiply_pair(
    const Stretch& n, const typename A::weight* w, const uint8_t* columns,
    const typename A::element* x, Sums<A, V, U>& a, Sums<A, V, U>& b) {
  constexpr int64_t T = V * A::kWidth;
  const auto shared = [&](int u) __attribute__((always_inline)) {
    const typename A::element* xk = x + columns[u] * T;
    typename A::vec xv[V];
    SE_UNROLL
    for (int v = 0; v < V; ++v) xv[v] = A::load(xk + v * A::kWidth);
    a.add(u, A::broadcast(w + 2 * u), xv);
    b.add(u, A::broadcast(w + 2 * u + 1), xv);
  };
  const auto own = [&](int u) __attribute__((always_inline)) {
    a.add(u, A::broadcast(w + 2 * u), x + columns[2 * u] * T);
    b.add(u, A::broadcast(w + 2 * u + 1), x + columns[2 * u + 1] * T);
  };
  int64_t i = 0;
  for (; i + U <= n.shared; i += U, w += 2 * U, columns += U) {
    SE_UNROLL
    for (int u = 0; u < U; ++u) shared(u);
  }
  if (U > 1)
    for (; i < n.shared; ++i, w += 2, ++columns) shared(0);
  i = 0;
  for (; i + U <= n.own; i += U, w += 2 * U, columns += 2 * U) {
    SE_UNROLL
    for (int u = 0; u < U; ++u) own(u);
  }
  if (U > 1)
    for (; i < n.own; ++i, w += 2, columns += 2) own(0);
  for (i = 0; i < n.rest; ++i) b.add(0, A::broadcast(w++), x + *columns++ * T);
  return columns;
}

}  // namespace SE_TARGET
}  // namespace se
