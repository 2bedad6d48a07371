#define SE_TARGET avx2
#include "simd/avx2.h"
#include "kernels/panel_io/kernel.h"
#include "kernels/panel_io/activation.inl.h"
#include "kernels/panel_io/order.inl.h"
#include "kernels/panel_io/body.inl.h"
#include "kernels/panel_io/tiles.inl.h"
// Kernels of this ISA read float panels only.
void se::pack_panel_avx2(const void* x, DType dtype, int64_t stride, int64_t tokens,
                         int64_t features, int64_t width, void* panel, Panel) {
  avx2::pack(x, dtype, stride, tokens, features, width, static_cast<float*>(panel));
}

void se::quantize_panel_avx2(const void* x, DType dtype, int64_t stride, int64_t tokens,
                             int64_t features, int64_t lanes, int64_t width, void* panel,
                             float* scales) {
  avx2::quantize(x, dtype, stride, tokens, features, lanes, width, panel, scales);
}

void se::token_scales_avx2(const void* x, DType dtype, int64_t stride, int64_t tokens,
                           int64_t features, float* scales) {
  avx2::token_scales(x, dtype, stride, tokens, features, scales);
}

void se::pack_bytes_avx2(const void* x, DType dtype, int64_t stride, int64_t tokens,
                         int64_t features, int64_t width, const float* scales, void* panel) {
  avx2::pack_bytes(x, dtype, stride, tokens, features, width, scales, panel);
}

void se::store_panel_avx2(const PanelSums& sums, int64_t tokens, int64_t row0, int64_t rows,
                          const Epilogue& epilogue) {
  avx2::store_panel(sums, tokens, row0, rows, epilogue);
}

void se::store_token_avx2(const float* acc, float scale, int64_t row0, int64_t rows,
                          const Epilogue& epilogue) {
  avx2::store_token(acc, scale, row0, rows, epilogue);
}

bool se::pack_tiles_avx2(const void* x, DType dtype, int64_t stride, int64_t tokens,
                         int64_t features, int64_t parts, int64_t part, void* tiles) {
  return avx2::pack_tiles(x, dtype, stride, tokens, features, parts, part, tiles);
}

void se::quantize_tiles_avx2(const void* x, DType dtype, int64_t stride, int64_t tokens,
                             int64_t features, void* tiles, float* scales) {
  avx2::quantize_tiles(x, dtype, stride, tokens, features, tiles, scales);
}

void se::store_tiles_avx2(const void* sums, const float* token_scales, int64_t tokens, int64_t row0,
                          int64_t rows, const Epilogue& epilogue) {
  avx2::store_tiles(sums, token_scales, tokens, row0, rows, epilogue);
}
