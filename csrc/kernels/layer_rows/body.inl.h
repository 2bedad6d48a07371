// Norm, rotation and attention of single rows over the vector layer.

namespace se {
namespace SE_TARGET {

inline float sum_lanes(vf a) {
  float lane[kLanes], sum = 0.0f;
  store(lane, a);
  for (int i = 0; i < kLanes; ++i) sum += lane[i];
  return sum;
}

inline float max_lanes(vf a) {
  float lane[kLanes];
  store(lane, a);
  float maximum = lane[0];
  for (int i = 1; i < kLanes; ++i) maximum = lane[i] > maximum ? lane[i] : maximum;
  return maximum;
}

// Sum of f(x). Four partial sums hide the latency of the addition.
template <class F>
inline float sum_row(const float* x, int64_t n, F f) {
  vf sum[4] = {zero(), zero(), zero(), zero()};
  int64_t k = 0;
  for (; k + 4 * kLanes <= n; k += 4 * kLanes)
    for (int i = 0; i < 4; ++i) sum[i] = add(sum[i], f(load(x + k + i * kLanes)));
  for (; k + kLanes <= n; k += kLanes) sum[0] = add(sum[0], f(load(x + k)));
  float total = sum_lanes(add(add(sum[0], sum[1]), add(sum[2], sum[3])));
  for (; k < n; ++k) {
    float lane[kLanes];
    store(lane, f(set1(x[k])));
    total += lane[0];
  }
  return total;
}

inline void norm_row(const float* x, int64_t features, const Norm& norm, float* y) {
  const float share = 1.0f / static_cast<float>(features);
  const float mean = norm.rms ? 0.0f : share * sum_row(x, features, [](vf a) { return a; });
  const vf centre = set1(mean);
  const float variance = share * sum_row(x, features, [=](vf a) {
                           const vf d = sub(a, centre);
                           return mul(d, d);
                         });
  const float inverse = 1.0f / __builtin_sqrtf(variance + norm.epsilon);
  int64_t k = 0;
  for (; k + kLanes <= features; k += kLanes) {
    const vf gamma = norm.gamma ? load(norm.gamma + k) : set1(1.0f);
    const vf beta = norm.beta ? load(norm.beta + k) : zero();
    store(y + k, fmadd(mul(sub(load(x + k), centre), set1(inverse)), gamma, beta));
  }
  for (; k < features; ++k)
    y[k] = (x[k] - mean) * inverse * (norm.gamma ? norm.gamma[k] : 1.0f) +
           (norm.beta ? norm.beta[k] : 0.0f);
}

inline void multiply_row(const float* x, int64_t n, float* y) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, mul(load(x + i), load(y + i)));
  for (; i < n; ++i) y[i] *= x[i];
}

inline void rotate_row(float* x, int64_t half, const float* cosines, const float* sines) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const vf a = load(x + i), b = load(x + half + i), c = load(cosines + i), s = load(sines + i);
    store(x + i, sub(mul(a, c), mul(b, s)));
    store(x + half + i, add(mul(b, c), mul(a, s)));
  }
  for (; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    x[i] = a * cosines[i] - b * sines[i];
    x[half + i] = b * cosines[i] + a * sines[i];
  }
}

constexpr int64_t kPage = 64;
constexpr float kMasked = -1e30f;  // finite, so that differences are not NaN

// acc[r][v] += sum over i < n of a[r * a_row + i * a_step] x row i of b, from column 0.
template <int R, int V, class T>
inline void rows_times(const float* a, int64_t a_row, int64_t a_step, const T* b, int64_t b_stride,
                       int64_t n, vf (&acc)[R][V]) {
  for (int64_t i = 0; i < n; ++i) {
    vf bv[V];
    SE_UNROLL
    for (int v = 0; v < V; ++v) bv[v] = load(b + i * b_stride + v * kLanes);
    SE_UNROLL
    for (int r = 0; r < R; ++r) {
      const vf w = broadcast(a + r * a_row + i * a_step);
      SE_UNROLL
      for (int v = 0; v < V; ++v) acc[r][v] = fmadd(w, bv[v], acc[r][v]);
    }
  }
}

// s[r][64] = scale * q_r . k for a page of keys.
template <int R, int V, class T>
inline void page_scores(const RowAttention& a, const float* q, const T* keys, float* s) {
  for (int64_t j = 0; j < kPage; j += V * kLanes) {
    vf acc[R][V];
    SE_UNROLL
    for (int i = 0; i < R * V; ++i) acc[i / V][i % V] = zero();
    rows_times<R, V>(q, a.head, 1, keys + j, kPage, a.head, acc);
    SE_UNROLL
    for (int i = 0; i < R * V; ++i)
      store(s + i / V * kPage + j + i % V * kLanes, mul(acc[i / V][i % V], set1(a.scale)));
  }
}

// sums[r] = sums[r] * factor[r] + p_r values [keys][width], for V vectors of features from d on.
template <int R, int V, class T>
inline void page_values(const RowAttention& a, const float* p, const T* values, int64_t keys,
                        const float* factor, int64_t d, float* sums) {
  vf acc[R][V];
  SE_UNROLL
  for (int i = 0; i < R * V; ++i)
    acc[i / V][i % V] = mul(load(sums + i / V * a.width + d + i % V * kLanes), set1(factor[i / V]));
  rows_times<R, V>(p, kPage, 1, values + d, a.width, keys, acc);
  SE_UNROLL
  for (int i = 0; i < R * V; ++i)
    store(sums + i / V * a.width + d + i % V * kLanes, acc[i / V][i % V]);
}

// Caps the scores of a page, adds the bias and masks those of positions that are not visible.
inline void mask_row(const RowAttention& a, int64_t query, int64_t position, int64_t keys,
                     float* s) {
  if (a.soft_cap != 0.0f)
    for (int64_t j = 0; j < kPage; j += kLanes) store(s + j, soft_capped(load(s + j), a.soft_cap));
  if (a.bias)
    for (int64_t j = 0; j < keys; ++j) s[j] += a.bias[query * a.bias_query - position - j];
  for (int64_t j = keys; j < kPage; ++j) s[j] = kMasked;
  for (int64_t j = 0; position + j < a.begin && j < kPage; ++j) s[j] = kMasked;
}

template <int R, class T>
inline void attend_heads(const RowAttention& a, int64_t first) {
  constexpr int kMaxVectors = static_cast<int>(kPage) / kLanes;
  constexpr int V = kAccumulators / R < kMaxVectors ? kAccumulators / R : kMaxVectors;
  float *s = a.scratch, *sums = s + R * kPage;
  float maximum[R], total[R], factor[R];
  for (int r = 0; r < R; ++r) maximum[r] = kMasked, total[r] = 0.0f;
  for (int64_t i = 0; i < R * a.width; i += kLanes) store(sums + i, zero());
  for (int64_t at = a.begin / kPage * kPage; at < a.end; at += kPage) {
    const int64_t keys = a.end - at < kPage ? a.end - at : kPage;
    page_scores<R, V>(a, a.q + first * a.head, static_cast<const T*>(a.keys[at / kPage]), s);
    for (int r = 0; r < R; ++r) {
      float* row = s + r * kPage;
      mask_row(a, first + r, at, keys, row);
      vf top = set1(maximum[r]);
      for (int64_t j = 0; j < kPage; j += kLanes) top = at_least(top, load(row + j));
      const float now = max_lanes(top);
      vf sum = zero();
      for (int64_t j = 0; j < kPage; j += kLanes) {
        const vf p = exponential(sub(load(row + j), set1(now)));
        sum = add(sum, p);
        store(row + j, p);
      }
      float lane[kLanes];
      store(lane, exponential(set1(maximum[r] - now)));
      factor[r] = lane[0];
      // Each masked score adds e^-87, which is negligible beside the 1 of the largest.
      total[r] = total[r] * factor[r] + sum_lanes(sum);
      maximum[r] = now;
    }
    const T* values = static_cast<const T*>(a.values[at / kPage]);
    int64_t d = 0;
    for (; d + V * kLanes <= a.width; d += V * kLanes)
      page_values<R, V>(a, s, values, keys, factor, d, sums);
    for (; d < a.width; d += kLanes) page_values<R, 1>(a, s, values, keys, factor, d, sums);
  }
  for (int r = 0; r < R; ++r) {
    const float inverse = 1.0f / total[r];
    for (int64_t d = 0; d < a.head; ++d)
      a.y[(first + r) * a.head + d] = sums[r * a.width + d] * inverse;
  }
}

template <class T>
inline void attend_pages(const RowAttention& a) {
  int64_t i = 0;
  for (; i + 4 <= a.queries; i += 4) attend_heads<4, T>(a, i);
  for (; i + 2 <= a.queries; i += 2) attend_heads<2, T>(a, i);
  for (; i < a.queries; ++i) attend_heads<1, T>(a, i);
}

inline void attend_row(const RowAttention& a) {
  a.dtype == DType::f32 ? attend_pages<float>(a) : attend_pages<bf16>(a);
}

}  // namespace SE_TARGET
}  // namespace se
