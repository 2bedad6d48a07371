#define SE_TARGET avx512
#include "simd/avx512.h"
#include "kernels/panel_io/kernel.h"
#include "kernels/panel_io/activation.inl.h"
#include "kernels/panel_io/order.inl.h"
#include "kernels/panel_io/body.inl.h"
#include "kernels/panel_io/halves.inl.h"
#include "kernels/panel_io/tiles.inl.h"

namespace se {
namespace avx512 {

// Two tiles of 16 tokens meet in one store; packus works in 128-bit quarters, which gives the order
// of a bf16 panel.
template <class T>
inline void pack_bf16(const T* x, int64_t stride, int64_t tokens, int64_t features, int64_t width,
                      uint16_t* panel) {
  for (int64_t k = 0; k < features; k += 16) {
    const int64_t n = features - k < 16 ? features - k : 16;
    if (width == 16) {
      vf tile[16];
      gather_tile(x + k, stride, tokens, n, tile);
      for (int64_t i = 0; i < n; ++i) store(reinterpret_cast<bf16*>(panel) + (k + i) * 16, tile[i]);
      continue;
    }
    for (int64_t t = 0; t < width; t += 32) {
      vf lo[16], hi[16];
      gather_tile(x + t * stride + k, stride, tokens - t, n, lo);
      gather_tile(x + (t + 16) * stride + k, stride, tokens - t - 16, n, hi);
      for (int64_t i = 0; i < n; ++i)
        _mm512_storeu_si512(panel + (k + i) * width + t,
                            _mm512_packus_epi32(round_to_bf16(lo[i]), round_to_bf16(hi[i])));
    }
  }
}

template <class T>
inline float token_power(const T* x, int64_t features) {
  vf maximum = zero();
  for (int64_t k = 0; k < features; k += kLanes)
    maximum = at_least(maximum, finite_magnitude(load_some(x + k, features - k)));
  float power[kLanes];
  store(power, powers_above(set1(_mm512_reduce_max_ps(maximum))));
  return power[0];
}

template <class T>
inline void pack_halves(const T* x, int64_t stride, int64_t tokens, int64_t features, int64_t width,
                        const float* powers, uint16_t* panel) {
  for (int64_t t = 0; t < width; t += kLanes)
    for (int64_t k = 0; k < features; k += kLanes) {
      const int64_t n = features - k;
      vf tile[kLanes];
      gather_tile(x + t * stride + k, stride, tokens - t, n, tile);
      SE_UNROLL
      for (int i = 0; i < kLanes; ++i)
        if (i < n) store_halves(panel + (k + i) * width + t, tile[i], load(powers + t));
    }
}

}  // namespace avx512
}  // namespace se
void se::token_powers_avx512(const void* x, DType dtype, int64_t stride, int64_t tokens,
                             int64_t features, float* powers) {
  for (int64_t t = 0; t < tokens; ++t)
    powers[t] =
        dtype == DType::f32
            ? avx512::token_power(static_cast<const float*>(x) + t * stride, features)
            : avx512::token_power(static_cast<const avx512::bf16*>(x) + t * stride, features);
}

void se::pack_halves_avx512(const void* x, DType dtype, int64_t stride, int64_t tokens,
                            int64_t features, int64_t width, const float* powers, void* panel) {
  uint16_t* to = static_cast<uint16_t*>(panel);
  if (dtype == DType::f32)
    avx512::pack_halves(static_cast<const float*>(x), stride, tokens, features, width, powers, to);
  else
    avx512::pack_halves(static_cast<const avx512::bf16*>(x), stride, tokens, features, width,
                        powers, to);
}

void se::pack_panel_avx512(const void* x, DType dtype, int64_t stride, int64_t tokens,
                           int64_t features, int64_t width, void* panel, Panel kind) {
  uint16_t* bits = static_cast<uint16_t*>(panel);
  if (kind == Panel::floats)
    avx512::pack(x, dtype, stride, tokens, features, width, static_cast<float*>(panel));
  else if (dtype == DType::f32)
    avx512::pack_bf16(static_cast<const float*>(x), stride, tokens, features, width, bits);
  else
    avx512::pack_bf16(static_cast<const avx512::bf16*>(x), stride, tokens, features, width, bits);
}

void se::quantize_panel_avx512(const void* x, DType dtype, int64_t stride, int64_t tokens,
                               int64_t features, int64_t lanes, int64_t width, void* panel,
                               float* scales) {
  avx512::quantize(x, dtype, stride, tokens, features, lanes, width, panel, scales);
}

void se::token_scales_avx512(const void* x, DType dtype, int64_t stride, int64_t tokens,
                             int64_t features, float* scales) {
  avx512::token_scales(x, dtype, stride, tokens, features, scales);
}

void se::pack_bytes_avx512(const void* x, DType dtype, int64_t stride, int64_t tokens,
                           int64_t features, int64_t width, const float* scales, void* panel) {
  avx512::pack_bytes(x, dtype, stride, tokens, features, width, scales, panel);
}

void se::store_panel_avx512(const PanelSums& sums, int64_t tokens, int64_t row0, int64_t rows,
                            const Epilogue& epilogue) {
  avx512::store_panel(sums, tokens, row0, rows, epilogue);
}

void se::store_token_avx512(const float* acc, float scale, int64_t row0, int64_t rows,
                            const Epilogue& epilogue) {
  avx512::store_token(acc, scale, row0, rows, epilogue);
}

bool se::pack_tiles_avx512(const void* x, DType dtype, int64_t stride, int64_t tokens,
                           int64_t features, int64_t parts, int64_t part, void* tiles) {
  return avx512::pack_tiles(x, dtype, stride, tokens, features, parts, part, tiles);
}

void se::quantize_tiles_avx512(const void* x, DType dtype, int64_t stride, int64_t tokens,
                               int64_t features, void* tiles, float* scales) {
  avx512::quantize_tiles(x, dtype, stride, tokens, features, tiles, scales);
}

void se::store_tiles_avx512(const void* sums, const float* token_scales, int64_t tokens,
                            int64_t row0, int64_t rows, const Epilogue& epilogue) {
  avx512::store_tiles(sums, token_scales, tokens, row0, rows, epilogue);
}
