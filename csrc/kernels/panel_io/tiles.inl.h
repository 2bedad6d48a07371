// Operands and results of tile products over the vector layer, after body.inl.h.

namespace se {
namespace SE_TARGET {

// kLanes bf16, wherever they are.
inline void store_bf16(uint16_t* to, vf a) { store(reinterpret_cast<bf16*>(to), a); }

// 32 columns of a token, of which `n` exist, to a line of a tile.
template <class T>
inline void pack_line(const T* x, int64_t n, uint16_t* to) {
  SE_UNROLL
  for (int i = 0; i < 32; i += kLanes) store_bf16(to + i, i < n ? load_some(x + i, n - i) : zero());
}
inline void pack_line(const bf16* x, int64_t n, uint16_t* to) {
  if (n >= 32) {
    __builtin_memcpy(to, x, 64);
    return;
  }
  for (int64_t i = 0; i < 32; ++i) to[i] = i < n ? x[i].bits : 0;
}

// The parts of a float: each is the nearest bf16 of what the ones before leave over. The third is
// exact. Returns zeros, and NaN for a number without such parts.
template <class T>
inline vf pack_parts(const T* x, int64_t n, int64_t part, uint16_t* to) {
  vf nan = zero();
  SE_UNROLL
  for (int i = 0; i < 32; i += kLanes) {
    const vf a = i < n ? load_some(x + i, n - i) : zero();
    const vf first = nearest_bf16(a), rest = sub(a, first), second = nearest_bf16(rest);
    const vf third = sub(rest, second);
    store_bf16(to + i, first);
    store_bf16(to + part + i, second);
    store_bf16(to + 2 * part + i, third);
    nan = fmadd(third, zero(), nan);
  }
  return nan;
}

// Tile by tile: lines of one token lie too far from each other to stay in the cache.
template <class T>
inline bool pack_lines(const T* x, int64_t stride, int64_t tokens, int64_t features, int64_t parts,
                       int64_t part, uint16_t* to) {
  vf nan = zero();
  for (int64_t k = 0; k < features; k += 32, to += 512)
    for (int64_t t = 0; t < 16; ++t) {
      const int64_t n = t < tokens ? features - k : 0;
      const T* from = x + (t < tokens ? t : 0) * stride + k;
      if (parts == 1)
        pack_line(from, n, to + 32 * t);
      else
        nan = add(nan, pack_parts(from, n, part, to + 32 * t));
    }
  float lanes[kLanes], sum = 0;
  store(lanes, nan);
  for (int i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum == 0;
}

template <class T>
inline void quantize_lines(const T* x, int64_t stride, int64_t tokens, int64_t features, int8_t* to,
                           float* scales) {
  constexpr int64_t kAtOnce = 4 * kLanes;
  float inverse[16];
  for (int64_t t = 0; t < 16; ++t) {
    scales[t] = t < tokens ? token_scale(x + t * stride, features) : 0.0f;
    inverse[t] = inverse_scale(scales[t]);
  }
  for (int64_t k = 0; k < features; k += 64)
    for (int64_t t = 0; t < 16; ++t)
      for (int64_t i = 0; i < 64; i += kAtOnce, to += kAtOnce) {
        const int64_t n = t < tokens ? features - k - i : 0;
        uint8_t bytes[kAtOnce];
        quantize_row(x + (t < tokens ? t : 0) * stride + k + i, n, inverse[t], bytes);
        for (int64_t j = 0; j < kAtOnce; ++j) bytes[j] ^= 0x80;  // without the offset of 128
        __builtin_memcpy(to, bytes, kAtOnce);
      }
}

// Whole cache lines of bf16 bypass the caches as floats do.
inline void stream_line(float* y, const vf* lines) {
  SE_UNROLL
  for (int i = 0; i < 32 / kLanes; ++i) stream(y + i * kLanes, lines[i]);
}
inline void stream_line(bf16* y, const vf* lines) {
  alignas(64) bf16 line[32];
  SE_UNROLL
  for (int i = 0; i < 32 / kLanes; ++i) store(line + i * kLanes, lines[i]);
  float words[16];
  __builtin_memcpy(words, line, sizeof words);
  SE_UNROLL
  for (int i = 0; i < 16; i += kLanes) stream(reinterpret_cast<float*>(y) + i, load(words + i));
}

template <class T, class A>
inline void store_lines(const A* sums, const float* token_scales, int64_t tokens, int64_t row0,
                        int64_t rows, const Epilogue& e) {
  for (int64_t t = 0; t < tokens; ++t, sums += 32) {
    T* y = static_cast<T*>(e.y) + t * e.y_stride + row0;
    const T* residual =
        e.residual ? static_cast<const T*>(e.residual) + t * e.residual_stride + row0 : nullptr;
    vf line[32 / kLanes] = {};
    SE_UNROLL
    for (int i = 0; i < 32; i += kLanes) {
      const int64_t n = rows - i;
      if (n <= 0) continue;
      vf a = load(sums + i);
      if (token_scales)
        a = mul(mul(a, load_some(e.row_scales + row0 + i, n)), set1(token_scales[t]));
      if (e.bias) a = add(a, load_some(e.bias + row0 + i, n));
      a = activate(e.activation, a);
      if (residual) a = add(a, load_some(residual + i, n));
      line[i / kLanes] = a;
      if (!e.stream || rows < 32) store_some(y + i, a, n);
    }
    if (e.stream && rows >= 32) stream_line(y, line);
  }
}

inline bool pack_tiles(const void* x, DType dtype, int64_t stride, int64_t tokens, int64_t features,
                       int64_t parts, int64_t part, void* to) {
  uint16_t* bits = static_cast<uint16_t*>(to);
  return dtype == DType::f32
             ? pack_lines(static_cast<const float*>(x), stride, tokens, features, parts, part, bits)
             : pack_lines(static_cast<const bf16*>(x), stride, tokens, features, parts, part, bits);
}

inline void quantize_tiles(const void* x, DType dtype, int64_t stride, int64_t tokens,
                           int64_t features, void* to, float* scales) {
  int8_t* bytes = static_cast<int8_t*>(to);
  if (dtype == DType::f32)
    quantize_lines(static_cast<const float*>(x), stride, tokens, features, bytes, scales);
  else
    quantize_lines(static_cast<const bf16*>(x), stride, tokens, features, bytes, scales);
}

inline void store_tiles(const void* sums, const float* token_scales, int64_t tokens, int64_t row0,
                        int64_t rows, const Epilogue& e) {
  const bool f32 = e.dtype == DType::f32;
  if (token_scales) {
    const int32_t* exact = static_cast<const int32_t*>(sums);
    f32 ? store_lines<float>(exact, token_scales, tokens, row0, rows, e)
        : store_lines<bf16>(exact, token_scales, tokens, row0, rows, e);
  } else {
    const float* floats = static_cast<const float*>(sums);
    f32 ? store_lines<float>(floats, nullptr, tokens, row0, rows, e)
        : store_lines<bf16>(floats, nullptr, tokens, row0, rows, e);
  }
}

}  // namespace SE_TARGET
}  // namespace se
