// Epilogue, norm, rotation and quantisation of panels over the vector layer.

namespace se {
namespace SE_TARGET {

template <class A>
inline void finish_rows(const PanelSums& sums, int64_t rows, const PanelEpilogue& e) {
  const int64_t width = sums.width;
  const A* acc = static_cast<const A*>(sums.acc);
  for (int64_t r = 0; r < rows; ++r) {
    const vf bias = set1(e.bias ? e.bias[r] : 0.0f);
    const vf scale = set1(e.row_scales ? e.row_scales[r] : 1.0f);
    for (int64_t t = r * width; t < (r + 1) * width; t += kLanes) {
      vf a = load(acc + t);
      if (sums.token_scales) a = mul(mul(a, scale), load(sums.token_scales + t - r * width));
      a = activate(e.activation, add(a, bias));
      if (e.other) a = e.multiply ? mul(a, load(e.other + t)) : add(a, load(e.other + t));
      store(e.y + t, a);
    }
  }
}

inline void finish_panel(const PanelSums& sums, int64_t rows, const PanelEpilogue& e) {
  sums.token_scales ? finish_rows<int32_t>(sums, rows, e) : finish_rows<float>(sums, rows, e);
}

inline vf square_root(vf a) {
  float lane[kLanes];
  store(lane, a);
  for (int i = 0; i < kLanes; ++i) lane[i] = __builtin_sqrtf(lane[i]);
  return load(lane);
}

// Sum of f(x) over the features. Four partial sums hide the latency of the addition.
template <class F>
inline vf sum_features(const float* x, int64_t stride, int64_t features, F f) {
  vf sum[4] = {zero(), zero(), zero(), zero()};
  int64_t k = 0;
  for (; k + 4 <= features; k += 4)
    for (int i = 0; i < 4; ++i) sum[i] = add(sum[i], f(load(x + (k + i) * stride)));
  for (; k < features; ++k) sum[0] = add(sum[0], f(load(x + k * stride)));
  return add(add(sum[0], sum[1]), add(sum[2], sum[3]));
}

// Mean and variance take a pass each, so that a mean far from zero costs no precision.
inline void norm_panel(const float* x, int64_t stride, int64_t features, int64_t lanes,
                       const Norm& norm, float* y) {
  const vf share = set1(1.0f / static_cast<float>(features));
  for (int64_t t = 0; t < lanes; t += kLanes) {
    const float* from = x + t;
    const vf mean = norm.rms
                        ? zero()
                        : mul(share, sum_features(from, stride, features, [](vf a) { return a; }));
    const vf variance = mul(share, sum_features(from, stride, features, [=](vf a) {
                              const vf d = sub(a, mean);
                              return mul(d, d);
                            }));
    const vf inverse = div(set1(1.0f), square_root(add(variance, set1(norm.epsilon))));
    for (int64_t k = 0; k < features; ++k) {
      const vf gamma = set1(norm.gamma ? norm.gamma[k] : 1.0f);
      const vf beta = set1(norm.beta ? norm.beta[k] : 0.0f);
      const vf a = mul(sub(load(from + k * stride), mean), inverse);
      store(y + t + k * stride, fmadd(a, gamma, beta));
    }
  }
}

inline void rotate_panel(float* x, int64_t stride, int64_t half, int64_t lanes,
                         const float* cosines, const float* sines) {
  for (int64_t i = 0; i < half * stride; i += stride)
    for (int64_t t = i; t < i + lanes; t += kLanes) {
      float* other = x + half * stride + t;
      const vf a = load(x + t), b = load(other), c = load(cosines + t), s = load(sines + t);
      store(x + t, sub(mul(a, c), mul(b, s)));
      store(other, add(mul(b, c), mul(a, s)));
    }
}

// Symmetric, one scale per lane. A lane with an Inf or NaN gets the scale NaN, since 0 x Inf and
// 0 x NaN are NaN.
inline void lane_scales(const float* x, int64_t stride, int64_t features, int64_t lanes,
                        float* scales) {
  for (int64_t t = 0; t < lanes; t += kLanes) {
    vf maximum = zero(), nan = zero();
    for (int64_t k = 0; k < features; ++k) {
      const vf a = load(x + k * stride + t);
      maximum = at_least(maximum, abs(a));
      nan = fmadd(a, zero(), nan);
    }
    store(scales + t, add(div(maximum, set1(127.0f)), nan));
  }
}

// The inverse of a scale below the smallest normal number would overflow: such tokens become zero.
inline vf inverse_scales(const float* scales) {
  float inverse[kLanes];
  for (int i = 0; i < kLanes; ++i) inverse[i] = scales[i] > 1.2e-38f ? 1.0f / scales[i] : 0.0f;
  return load(inverse);
}

inline void rows_to_bytes(const float* x, int64_t rows, int64_t width, const float* scales,
                          void* panel) {
  int8_t* bytes = static_cast<int8_t*>(panel);
  for (int64_t t = 0; t < width; t += kLanes) {
    const vf inverse = inverse_scales(scales + t);
    for (int64_t k = 0; k < rows; ++k)
      store_byte_lanes(bytes + k * width, t, width, mul(load(x + k * width + t), inverse));
  }
}

inline void rows_to_bf16(const float* x, int64_t rows, int64_t width, void* panel) {
  uint16_t* bits = static_cast<uint16_t*>(panel);
  for (int64_t k = 0; k < rows; ++k)
    for (int64_t t = 0; t < width; t += kLanes)
      store_bf16_lanes(bits + k * width, t, width, load(x + k * width + t));
}

inline void quantize_lanes(const float* x, int64_t stride, int64_t features, int64_t lanes,
                           float* quads, float* scales) {
  lane_scales(x, stride, features, lanes, scales);
  for (int64_t t = 0; t < lanes; t += kLanes) {
    const vf scale = inverse_scales(scales + t);
    const auto at = [&](int64_t k) {
      return k < features ? mul(load(x + k * stride + t), scale) : zero();
    };
    for (int64_t k = 0; k < features; k += 4)
      store_offset_quads(quads + k / 4 * stride + t, at(k), at(k + 1), at(k + 2), at(k + 3));
  }
}

}  // namespace SE_TARGET
}  // namespace se
