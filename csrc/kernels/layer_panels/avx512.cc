#define SE_TARGET avx512
#include "simd/avx512.h"
#include "kernels/layer_panels/kernel.h"
#include "kernels/panel_io/activation.inl.h"
#include "kernels/widen.inl.h"
#include "kernels/panel_io/order.inl.h"
#include "kernels/layer_panels/body.inl.h"
#include "kernels/panel_io/halves.inl.h"
#include "kernels/layer_panels/attend.inl.h"
#include "kernels/layer_panels/tiles.inl.h"

void se::finish_panel_avx512(const PanelSums& sums, int64_t rows, const PanelEpilogue& epilogue) {
  avx512::finish_panel(sums, rows, epilogue);
}

void se::norm_panel_avx512(const float* x, int64_t stride, int64_t features, int64_t lanes,
                           const Norm& norm, float* y) {
  avx512::norm_panel(x, stride, features, lanes, norm, y);
}

void se::rotate_panel_avx512(float* x, int64_t stride, int64_t half, int64_t lanes,
                             const float* cosines, const float* sines) {
  avx512::rotate_panel(x, stride, half, lanes, cosines, sines);
}

void se::quantize_lanes_avx512(const float* x, int64_t stride, int64_t features, int64_t lanes,
                               float* quads, float* scales) {
  avx512::quantize_lanes(x, stride, features, lanes, quads, scales);
}

void se::lane_scales_avx512(const float* x, int64_t stride, int64_t features, int64_t lanes,
                            float* scales) {
  avx512::lane_scales(x, stride, features, lanes, scales);
}

void se::rows_to_bf16_avx512(const float* x, int64_t rows, int64_t width, void* panel) {
  if (width < 32) return avx512::rows_to_bf16(x, rows, width, panel);
  uint16_t* to = static_cast<uint16_t*>(panel);
  for (int64_t i = 0; i < rows * width; i += 32)
    // packus works in 128-bit quarters, which gives the order of a bf16 panel.
    _mm512_storeu_si512(to + i,
                        _mm512_packus_epi32(avx512::round_to_bf16(avx512::load(x + i)),
                                            avx512::round_to_bf16(avx512::load(x + i + 16))));
}

void se::rows_to_bytes_avx512(const float* x, int64_t rows, int64_t width, const float* scales,
                              void* panel) {
  avx512::rows_to_bytes(x, rows, width, scales, panel);
}

void se::lane_powers_avx512(const float* x, int64_t stride, int64_t features, float* powers) {
  avx512::vf maximum = avx512::zero();
  for (int64_t k = 0; k < features; ++k)
    maximum = avx512::at_least(maximum, avx512::finite_magnitude(avx512::load(x + k * stride)));
  avx512::store(powers, avx512::powers_above(maximum));
}

void se::rows_to_halves_avx512(const float* x, int64_t rows, int64_t width, const float* powers,
                               void* panel) {
  uint16_t* to = static_cast<uint16_t*>(panel);
  for (int64_t t = 0; t < width; t += 16) {
    const avx512::vf power = avx512::load(powers + t);
    for (int64_t k = 0; k < rows; ++k)
      avx512::store_halves(to + k * width + t, avx512::load(x + k * width + t), power);
  }
}

void se::attend_avx512(const Attention& attention) {
  avx512::attend<avx512::FloatProducts>(attention);
}

void se::lanes_to_tiles_avx512(const float* x, int64_t stride, int64_t features, void* tiles) {
  avx512::lanes_to_tiles(x, stride, features, tiles);
}

void se::quads_to_tiles_avx512(const float* quads, int64_t stride, int64_t count, void* tiles) {
  avx512::quads_to_tiles(quads, stride, count, tiles);
}

void se::tiles_to_lanes_avx512(const void* sums, int64_t stride, void* acc) {
  avx512::tiles_to_lanes(sums, stride, acc);
}
