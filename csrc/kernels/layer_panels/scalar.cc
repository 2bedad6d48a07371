#define SE_TARGET scalar
#include "simd/scalar.h"
#include "kernels/layer_panels/kernel.h"
#include "kernels/panel_io/activation.inl.h"
#include "kernels/widen.inl.h"
#include "kernels/panel_io/order.inl.h"
#include "kernels/layer_panels/body.inl.h"
#include "kernels/layer_panels/attend.inl.h"
#include "kernels/layer_panels/tiles.inl.h"

void se::finish_panel_scalar(const PanelSums& sums, int64_t rows, const PanelEpilogue& epilogue) {
  scalar::finish_panel(sums, rows, epilogue);
}

void se::norm_panel_scalar(const float* x, int64_t stride, int64_t features, int64_t lanes,
                           const Norm& norm, float* y) {
  scalar::norm_panel(x, stride, features, lanes, norm, y);
}

void se::rotate_panel_scalar(float* x, int64_t stride, int64_t half, int64_t lanes,
                             const float* cosines, const float* sines) {
  scalar::rotate_panel(x, stride, half, lanes, cosines, sines);
}

void se::quantize_lanes_scalar(const float* x, int64_t stride, int64_t features, int64_t lanes,
                               float* quads, float* scales) {
  scalar::quantize_lanes(x, stride, features, lanes, quads, scales);
}

void se::lane_scales_scalar(const float* x, int64_t stride, int64_t features, int64_t lanes,
                            float* scales) {
  scalar::lane_scales(x, stride, features, lanes, scales);
}

void se::rows_to_bf16_scalar(const float* x, int64_t rows, int64_t width, void* panel) {
  scalar::rows_to_bf16(x, rows, width, panel);
}

void se::rows_to_bytes_scalar(const float* x, int64_t rows, int64_t width, const float* scales,
                              void* panel) {
  scalar::rows_to_bytes(x, rows, width, scales, panel);
}

void se::attend_scalar(const Attention& attention) {
  scalar::attend<scalar::FloatProducts>(attention);
}

void se::lanes_to_tiles_scalar(const float* x, int64_t stride, int64_t features, void* tiles) {
  scalar::lanes_to_tiles(x, stride, features, tiles);
}

void se::quads_to_tiles_scalar(const float* quads, int64_t stride, int64_t count, void* tiles) {
  scalar::quads_to_tiles(quads, stride, count, tiles);
}

void se::tiles_to_lanes_scalar(const void* sums, int64_t stride, void* acc) {
  scalar::tiles_to_lanes(sums, stride, acc);
}
