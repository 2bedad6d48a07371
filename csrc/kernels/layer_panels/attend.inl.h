// Attention over the vector layer. Queries lie in the lanes; keys and values are broadcast. Scores
// of 64 keys at a time stay in L1. The running maximum and sum of each query are lanes, too.

namespace se {
namespace SE_TARGET {

constexpr int64_t kKeys = 64;
constexpr float kMasked = -1e30f;  // finite, so that differences are not NaN

// acc[r][v] += sum over n of a[r * a_row + i * a_step] x b[i][v].
template <int R, int V>
inline void outer(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t n,
                  vf (&acc)[R][V]) {
  for (int64_t i = 0; i < n; ++i) {
    vf bv[V];
    SE_UNROLL
    for (int v = 0; v < V; ++v) bv[v] = load(b + (i * V + v) * kLanes);
    SE_UNROLL
    for (int r = 0; r < R; ++r) {
      const vf w = broadcast(a + r * a_row + i * a_step);
      SE_UNROLL
      for (int v = 0; v < V; ++v) acc[r][v] = fmadd(w, bv[v], acc[r][v]);
    }
  }
}

// scores[j] = k_j . q for R keys.
template <int R, int V>
inline void scores_of(const float* k, int64_t k_feature, const float* q, int64_t head, float* s) {
  vf acc[R][V];
  SE_UNROLL
  for (int i = 0; i < R * V; ++i) acc[i / V][i % V] = zero();
  outer<R, V>(k, 1, k_feature, q, head, acc);
  SE_UNROLL
  for (int i = 0; i < R * V; ++i) store(s + i * kLanes, acc[i / V][i % V]);
}

// sums[d] = sums[d] x factor + sum over keys of v[d] x p for R features.
template <int R, int V>
inline void values_of(const KeySpan& span, const float* v, const float* p, int64_t keys,
                      const vf (&factor)[V], float* sums) {
  vf acc[R][V];
  SE_UNROLL
  for (int i = 0; i < R * V; ++i) acc[i / V][i % V] = mul(load(sums + i * kLanes), factor[i % V]);
  outer<R, V>(v, span.v_feature, span.v_position, p, keys, acc);
  SE_UNROLL
  for (int i = 0; i < R * V; ++i) store(sums + i * kLanes, acc[i / V][i % V]);
}

// Caps scores [keys][V vectors], adds the bias and masks them; the first key is at position `key`.
template <int V>
inline void adjust(const Attention& a, int64_t key, int64_t keys, float* s) {
  constexpr int64_t T = V * kLanes;
  if (a.soft_cap != 0.0f)
    for (int64_t i = 0; i < keys * T; i += kLanes)
      store(s + i, soft_capped(load(s + i), a.soft_cap));
  // A lane is visible if first <= distance of its query from the key <= last.
  constexpr int64_t kFar = int64_t{1} << 40;
  const int64_t last = a.window ? a.window - 1 : kFar, first = a.causal ? 0 : -last;
  for (int64_t j = 0; j < keys; ++j) {
    const int64_t ahead = a.first_query - key - j;  // distance of query 0 from this key
    if (a.bias)
      for (int64_t i = 0; i < a.queries; ++i) s[j * T + i] += a.bias[ahead + i];
    if (ahead >= first && ahead + a.queries - 1 <= last) continue;
    for (int64_t i = 0; i < T; ++i)
      if (ahead + i < first || ahead + i > last) s[j * T + i] = kMasked;
  }
}

// The span with keys and values as floats: a broadcast from bf16 would cost a shift each.
inline KeySpan widened(KeySpan span, int64_t head, float* wide) {
  const int64_t keys = head * kKeys;
  span.v = widen(static_cast<const bf16*>(span.v), span.keys * span.v_position, wide + keys);
  span.k = widen(static_cast<const bf16*>(span.k), keys, wide);
  span.dtype = DType::f32;
  return span;
}

// The two products of attention, for V vectors of queries. attend_part calls, in this order:
//   take(a)                       queries; sums are zero
//   floats(span)                  the span as scores and values read it
//   scores(span, j0, keys)        s[j] = k_j . q, for up to 64 keys from j0 on
//   values(span, j0, keys, f)     sums[d] = sums[d] x f + sum over keys of v[d] x s
template <int V>
struct FloatProducts {
  static constexpr int64_t T = V * kLanes;
  static constexpr int R = kAccumulators / V;
  float *s, *sums;  // [64][T], [head][T]
  float *q, *wide;
  int64_t head;

  explicit FloatProducts(const Attention& a)
      : s(a.scratch),
        sums(s + kKeys * kQueries),
        q(sums + a.head * kQueries),
        wide(q + a.head * kQueries),
        head(a.head) {}

  void take(const Attention& a) {
    for (int64_t d = 0; d < head; ++d) SE_UNROLL
    for (int v = 0; v < V; ++v) {
      store(q + d * T + v * kLanes, mul(load(a.q + d * a.stride + v * kLanes), set1(a.scale)));
      store(sums + d * T + v * kLanes, zero());
    }
  }
  KeySpan floats(const KeySpan& span) {
    return span.dtype == DType::f32 ? span : widened(span, head, wide);
  }
  void scores(const KeySpan& span, int64_t j0, int64_t keys) {
    const float* k = static_cast<const float*>(span.k) + j0;
    int64_t j = 0;
    for (; j + R <= keys; j += R) scores_of<R, V>(k + j, span.k_feature, q, head, s + j * T);
    for (; j < keys; ++j) scores_of<1, V>(k + j, span.k_feature, q, head, s + j * T);
  }
  void values(const KeySpan& span, int64_t j0, int64_t keys, const vf (&factor)[V]) {
    const float* from = static_cast<const float*>(span.v) + j0 * span.v_position;
    int64_t d = 0;
    for (; d + R <= head; d += R)
      values_of<R, V>(span, from + d * span.v_feature, s, keys, factor, sums + d * T);
    for (; d < head; ++d)
      values_of<1, V>(span, from + d * span.v_feature, s, keys, factor, sums + d * T);
  }
};

template <int V, class Products>
inline void attend_part(const Attention& a, Products products) {
  constexpr int64_t T = V * kLanes;
  float *s = products.s, *sums = products.sums;
  products.take(a);
  vf maximum[V], total[V];
  for (int v = 0; v < V; ++v) maximum[v] = set1(kMasked), total[v] = zero();
  int64_t position = 0;
  for (int64_t i = 0; i < a.count; ++i) {
    const KeySpan span = products.floats(a.spans[i]);
    for (int64_t j0 = 0; j0 < span.keys; j0 += kKeys) {
      const int64_t keys = span.keys - j0 < kKeys ? span.keys - j0 : kKeys;
      products.scores(span, j0, keys);
      adjust<V>(a, position + j0, keys, s);
      vf factor[V];
      for (int v = 0; v < V; ++v) {
        vf top = maximum[v];
        for (int64_t j = 0; j < keys; ++j) top = at_least(top, load(s + j * T + v * kLanes));
        factor[v] = exponential(sub(maximum[v], top));
        maximum[v] = top;
        total[v] = mul(total[v], factor[v]);
        for (int64_t j = 0; j < keys; ++j) {
          float* at = s + j * T + v * kLanes;
          const vf p = exponential(sub(load(at), top));
          total[v] = add(total[v], p);
          store(at, p);
        }
      }
      products.values(span, j0, keys, factor);
    }
    position += span.keys;
  }
  vf inverse[V];
  for (int v = 0; v < V; ++v) inverse[v] = div(set1(1.0f), total[v]);
  for (int64_t d = 0; d < a.head; ++d) SE_UNROLL
  for (int v = 0; v < V; ++v) {
    const int64_t left = a.queries - v * kLanes;
    const vf y = mul(load(sums + d * T + v * kLanes), inverse[v]);
    float* to = a.y + d * a.stride + v * kLanes;
    if (left >= kLanes) {
      store(to, y);
    } else if (left > 0) {
      float part[kLanes];
      store(part, y);
      for (int64_t l = 0; l < left; ++l) to[l] = part[l];
    }
  }
}

template <template <int> class Products>
inline void attend(const Attention& a) {
  // More queries than four vectors hold are processed in turn, each part over all keys.
  for (int64_t i = 0; i < a.queries; i += 4 * kLanes) {
    Attention part = a;
    part.q += i;
    part.y += i;
    part.first_query += i;
    part.queries = a.queries - i < 4 * kLanes ? a.queries - i : 4 * kLanes;
    if (part.queries > 2 * kLanes)
      attend_part<4>(part, Products<4>(part));
    else if (part.queries > kLanes)
      attend_part<2>(part, Products<2>(part));
    else
      attend_part<1>(part, Products<1>(part));
  }
}

}  // namespace SE_TARGET
}  // namespace se
