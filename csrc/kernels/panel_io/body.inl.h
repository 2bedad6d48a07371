// Panels over the vector layer: square tiles of kLanes x kLanes are transposed in registers.

namespace se {
namespace SE_TARGET {

// Loads min(n, kLanes) elements; the other lanes are zero.
template <class T>
inline vf load_some(const T* p, int64_t n) {
  if (n >= kLanes) return load(p);
  T part[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) part[i] = p[i];
  return load(part);
}

template <class T>
inline void store_some(T* p, vf a, int64_t n) {
  if (n >= kLanes) return store(p, a);
  T part[kLanes];
  store(part, a);
  for (int64_t i = 0; i < n; ++i) p[i] = part[i];
}

// panel[k][t .. t + kLanes) = x[t ..][k ..) for one tile; `n` of its features exist.
template <class T>
inline void gather_tile(const T* x, int64_t stride, int64_t tokens, int64_t n, vf (&tile)[kLanes]) {
  SE_UNROLL
  for (int i = 0; i < kLanes; ++i) tile[i] = i >= tokens ? zero() : load_some(x + i * stride, n);
  transpose(tile);
}

// Stores the first `n` vectors of a tile, `stride` apart. Indices are constants; otherwise the tile
// would be kept in memory.
inline void store_rows_of_tile(const vf (&tile)[kLanes], int64_t n, float* p, int64_t stride) {
  SE_UNROLL
  for (int i = 0; i < kLanes; ++i)
    if (i < n) store(p + i * stride, tile[i]);
}

template <class T>
inline void pack_f32(const T* x, int64_t stride, int64_t tokens, int64_t features, int64_t width,
                     float* panel) {
  // Four adjacent cache lines of a token in a row, so that the hardware prefetcher follows; the
  // part of the panel that they are written to stays in L1.
  constexpr int64_t kRun = 64;
  for (int64_t k0 = 0; k0 < features; k0 += kRun)
    for (int64_t t = 0; t < width; t += kLanes)
      for (int64_t k = k0; k < features && k < k0 + kRun; k += kLanes) {
        vf tile[kLanes];
        gather_tile(x + t * stride + k, stride, tokens - t, features - k, tile);
        store_rows_of_tile(tile, features - k, panel + k * width + t, width);
      }
}

// The first 4 kLanes of x as bytes round(x * inverse) + 128; zeros (byte 128) past `n`.
template <class T>
inline void quantize_row(const T* x, int64_t n, float inverse, uint8_t* bytes) {
  const vf scale = set1(inverse);
  for (int64_t i = 0; i < 4; ++i) {
    const int64_t left = n - i * kLanes;
    const vf a = left > 0 ? load_some(x + i * kLanes, left) : zero();
    store_offset_bytes(bytes + i * kLanes, mul(a, scale));
  }
}

// max |x|, or NaN if x holds an Inf or NaN.
template <class T>
inline float largest(const T* x, int64_t features) {
  vf maximum = zero(), nan = zero();  // 0 x Inf and 0 x NaN are NaN
  int64_t k = 0;
  for (; k + kLanes <= features; k += kLanes) {
    const vf a = load(x + k);
    maximum = at_least(maximum, abs(a));
    nan = fmadd(a, zero(), nan);
  }
  if (k < features) {
    const vf a = load_some(x + k, features - k);
    maximum = at_least(maximum, abs(a));
    nan = fmadd(a, zero(), nan);
  }
  float maxima[kLanes], nans[kLanes], top = 0, nan_or_zero = 0;
  store(maxima, maximum);
  store(nans, nan);
  for (int i = 0; i < kLanes; ++i) {
    top = maxima[i] > top ? maxima[i] : top;
    nan_or_zero += nans[i];
  }
  return top + nan_or_zero;
}

template <class T>
inline float token_scale(const T* x, int64_t features) {
  return largest(x, features) / 127.0f;
}

// The inverse of a scale below the smallest normal number would overflow: such tokens become zero,
// as those with an Inf or NaN do, whose scale is NaN.
inline float inverse_scale(float scale) { return scale > 1.2e-38f ? 1.0f / scale : 0.0f; }

template <class T>
inline void pack_bytes(const T* x, int64_t stride, int64_t tokens, int64_t features, int64_t width,
                       const float* scales, int8_t* panel) {
  for (int64_t t = 0; t < width; t += kLanes) {
    float inverses[kLanes];
    for (int i = 0; i < kLanes; ++i) inverses[i] = inverse_scale(scales[t + i]);
    const vf inverse = load(inverses);
    for (int64_t k = 0; k < features; k += kLanes) {
      vf tile[kLanes];
      gather_tile(x + t * stride + k, stride, tokens - t, features - k, tile);
      SE_UNROLL
      for (int i = 0; i < kLanes; ++i)
        if (i < features - k)
          store_byte_lanes(panel + (k + i) * width, t, width, mul(tile[i], inverse));
    }
  }
}

template <class T>
inline void quantize_rows(const T* x, int64_t stride, int64_t tokens, int64_t features,
                          int64_t lanes, int64_t width, float* panel, float* scales) {
  const int64_t quads = (features + 3) / 4;
  for (int64_t t = 0; t < lanes; t += kLanes) {
    float inverse[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      scales[t + i] = t + i < tokens ? token_scale(x + (t + i) * stride, features) : 0.0f;
      inverse[i] = inverse_scale(scales[t + i]);
    }
    for (int64_t q = 0; q < quads; q += kLanes) {
      alignas(64) uint8_t bytes[kLanes][4 * kLanes];
      for (int64_t i = 0; i < kLanes; ++i)
        if (t + i < tokens)
          quantize_row(x + (t + i) * stride + 4 * q, features - 4 * q, inverse[i], bytes[i]);
        else
          __builtin_memset(bytes[i], 128, sizeof bytes[i]);
      vf tile[kLanes];
      SE_UNROLL
      for (int i = 0; i < kLanes; ++i) tile[i] = load(reinterpret_cast<const float*>(bytes[i]));
      transpose(tile);
      store_rows_of_tile(tile, quads - q, panel + q * width + t, width);
    }
  }
}

// One vector of a token's sums, as floats and scaled if they are int32, by the type of the first
// argument.
inline vf scaled(const float*, vf sums, vf, const float*) { return sums; }
inline vf scaled(const int32_t*, vf sums, vf row_scale, const float* token_scale) {
  return mul(mul(from_integers(sums), row_scale), set1(*token_scale));
}

// A bf16 vector fills half a cache line: it is stored through the caches, where the other half
// joins it.
inline void store_vector(float* p, vf a) { stream(p, a); }
inline void store_vector(bf16* p, vf a) { store(p, a); }

// kLanes rows of kColumns tokens, of which `rows` and `tokens` exist. Without `kPart` all do.
template <class T, class A, bool kPart, bool kActivates>
inline void store_tile(const A* acc, int64_t width, const float* token_scales, int64_t tokens,
                       int64_t rows, const Epilogue& e, int64_t row0, const T* residual, T* y) {
  const float* from = reinterpret_cast<const float*>(acc);
  const int64_t n = kPart ? rows : kLanes;
  float some[kPart ? kLanes * kColumns : 1] = {};
  if (kPart)
    for (int64_t i = 0; i < n && i < kLanes; ++i)
      __builtin_memcpy(some + i * kColumns, from + i * width, sizeof(float) * kColumns);
  vf line[kColumns];
  load_columns(kPart ? some : from, kPart ? kColumns : width, line);
  const vf bias = e.bias ? load_some(e.bias + row0, n) : zero();
  const vf row_scale = token_scales ? load_some(e.row_scales + row0, n) : zero();
  SE_UNROLL
  for (int i = 0; i < kColumns; ++i) {
    if (kPart && i >= tokens) break;
    vf a = add(scaled(acc, line[i], row_scale, token_scales + i), bias);
    if (kActivates) a = activate(e.activation, a);
    if (residual) a = add(a, load_some(residual + i * e.residual_stride, n));
    T* to = y + i * e.y_stride;
    if (kPart || !e.stream)
      store_some(to, a, n);
    else
      store_vector(to, a);
  }
}

template <class T, class A, bool kActivates>
inline void store_tiles_of(const PanelSums& sums, int64_t tokens, int64_t row0, int64_t rows,
                           const Epilogue& e) {
  // Tokens are the outer loop: each row of y lies on another page of memory, and the TLB holds few.
  for (int64_t t = 0; t < tokens; t += kColumns)
    for (int64_t r = 0; r < rows; r += kLanes) {
      const A* acc = static_cast<const A*>(sums.acc) + r * sums.width + t;
      const float* scales = sums.token_scales ? sums.token_scales + t : nullptr;
      const T* residual = e.residual
                              ? static_cast<const T*>(e.residual) + t * e.residual_stride + row0 + r
                              : nullptr;
      T* y = static_cast<T*>(e.y) + t * e.y_stride + row0 + r;
      const bool part = rows - r < kLanes || tokens - t < kColumns;
      if (part)
        store_tile<T, A, true, kActivates>(acc, sums.width, scales, tokens - t, rows - r, e,
                                           row0 + r, residual, y);
      else
        store_tile<T, A, false, kActivates>(acc, sums.width, scales, tokens - t, rows - r, e,
                                            row0 + r, residual, y);
    }
}

template <class T, class A>
inline void store_rows(const PanelSums& sums, int64_t tokens, int64_t row0, int64_t rows,
                       const Epilogue& e) {
  if (e.activation == Activation::none)
    store_tiles_of<T, A, false>(sums, tokens, row0, rows, e);
  else
    store_tiles_of<T, A, true>(sums, tokens, row0, rows, e);
}

template <class T>
inline void store_one(const float* acc, float scale, int64_t row0, int64_t rows,
                      const Epilogue& e) {
  const T* residual = static_cast<const T*>(e.residual);
  for (int64_t r = 0; r < rows; r += kLanes) {
    const int64_t n = rows - r < kLanes ? rows - r : kLanes;
    vf a = load_some(acc + r, n);
    if (e.row_scales) a = mul(a, mul(load_some(e.row_scales + row0 + r, n), set1(scale)));
    if (e.bias) a = add(a, load_some(e.bias + row0 + r, n));
    a = activate(e.activation, a);
    if (residual) a = add(a, load_some(residual + row0 + r, n));
    store_some(static_cast<T*>(e.y) + row0 + r, a, n);
  }
}

inline void pack(const void* x, DType dtype, int64_t stride, int64_t tokens, int64_t features,
                 int64_t width, float* panel) {
  if (dtype == DType::f32)
    pack_f32(static_cast<const float*>(x), stride, tokens, features, width, panel);
  else
    pack_f32(static_cast<const bf16*>(x), stride, tokens, features, width, panel);
}

inline void quantize(const void* x, DType dtype, int64_t stride, int64_t tokens, int64_t features,
                     int64_t lanes, int64_t width, void* panel, float* scales) {
  float* quads = static_cast<float*>(panel);
  if (dtype == DType::f32)
    quantize_rows(static_cast<const float*>(x), stride, tokens, features, lanes, width, quads,
                  scales);
  else
    quantize_rows(static_cast<const bf16*>(x), stride, tokens, features, lanes, width, quads,
                  scales);
}

inline void token_scales(const void* x, DType dtype, int64_t stride, int64_t tokens,
                         int64_t features, float* scales) {
  for (int64_t t = 0; t < tokens; ++t)
    scales[t] = dtype == DType::f32
                    ? token_scale(static_cast<const float*>(x) + t * stride, features)
                    : token_scale(static_cast<const bf16*>(x) + t * stride, features);
}

inline void pack_bytes(const void* x, DType dtype, int64_t stride, int64_t tokens, int64_t features,
                       int64_t width, const float* scales, void* panel) {
  int8_t* bytes = static_cast<int8_t*>(panel);
  if (dtype == DType::f32)
    pack_bytes(static_cast<const float*>(x), stride, tokens, features, width, scales, bytes);
  else
    pack_bytes(static_cast<const bf16*>(x), stride, tokens, features, width, scales, bytes);
}

inline void store_panel(const PanelSums& sums, int64_t tokens, int64_t row0, int64_t rows,
                        const Epilogue& e) {
  const bool f32 = e.dtype == DType::f32;
  if (sums.token_scales)
    f32 ? store_rows<float, int32_t>(sums, tokens, row0, rows, e)
        : store_rows<bf16, int32_t>(sums, tokens, row0, rows, e);
  else
    f32 ? store_rows<float, float>(sums, tokens, row0, rows, e)
        : store_rows<bf16, float>(sums, tokens, row0, rows, e);
}

inline void store_token(const float* acc, float scale, int64_t row0, int64_t rows,
                        const Epilogue& e) {
  if (e.dtype == DType::f32)
    store_one<float>(acc, scale, row0, rows, e);
  else
    store_one<bf16>(acc, scale, row0, rows, e);
}

}  // namespace SE_TARGET
}  // namespace se
