#define SE_TARGET avx2
#include "simd/avx2.h"
#include "kernels/layer_panels/kernel.h"
#include "kernels/panel_io/activation.inl.h"
#include "kernels/widen.inl.h"
#include "kernels/panel_io/order.inl.h"
#include "kernels/layer_panels/body.inl.h"
#include "kernels/layer_panels/attend.inl.h"
#include "kernels/layer_panels/tiles.inl.h"

void se::finish_panel_avx2(const PanelSums& sums, int64_t rows, const PanelEpilogue& epilogue) {
  avx2::finish_panel(sums, rows, epilogue);
}

void se::norm_panel_avx2(const float* x, int64_t stride, int64_t features, int64_t lanes,
                         const Norm& norm, float* y) {
  avx2::norm_panel(x, stride, features, lanes, norm, y);
}

void se::rotate_panel_avx2(float* x, int64_t stride, int64_t half, int64_t lanes,
                           const float* cosines, const float* sines) {
  avx2::rotate_panel(x, stride, half, lanes, cosines, sines);
}

void se::quantize_lanes_avx2(const float* x, int64_t stride, int64_t features, int64_t lanes,
                             float* quads, float* scales) {
  avx2::quantize_lanes(x, stride, features, lanes, quads, scales);
}

void se::lane_scales_avx2(const float* x, int64_t stride, int64_t features, int64_t lanes,
                          float* scales) {
  avx2::lane_scales(x, stride, features, lanes, scales);
}

void se::rows_to_bf16_avx2(const float* x, int64_t rows, int64_t width, void* panel) {
  avx2::rows_to_bf16(x, rows, width, panel);
}

void se::rows_to_bytes_avx2(const float* x, int64_t rows, int64_t width, const float* scales,
                            void* panel) {
  avx2::rows_to_bytes(x, rows, width, scales, panel);
}

void se::attend_avx2(const Attention& attention) { avx2::attend<avx2::FloatProducts>(attention); }

void se::lanes_to_tiles_avx2(const float* x, int64_t stride, int64_t features, void* tiles) {
  avx2::lanes_to_tiles(x, stride, features, tiles);
}

void se::quads_to_tiles_avx2(const float* quads, int64_t stride, int64_t count, void* tiles) {
  avx2::quads_to_tiles(quads, stride, count, tiles);
}

void se::tiles_to_lanes_avx2(const void* sums, int64_t stride, void* acc) {
  avx2::tiles_to_lanes(sums, stride, acc);
}
