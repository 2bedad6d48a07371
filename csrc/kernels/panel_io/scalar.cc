#define SE_TARGET scalar
#include "simd/scalar.h"
#include "kernels/panel_io/kernel.h"
#include "kernels/panel_io/activation.inl.h"
#include "kernels/panel_io/order.inl.h"
#include "kernels/panel_io/body.inl.h"
#include "kernels/panel_io/tiles.inl.h"
// Kernels of this ISA read float panels only.
void se::pack_panel_scalar(const void* x, DType dtype, int64_t stride, int64_t tokens,
                           int64_t features, int64_t width, void* panel, Panel) {
  scalar::pack(x, dtype, stride, tokens, features, width, static_cast<float*>(panel));
}

void se::quantize_panel_scalar(const void* x, DType dtype, int64_t stride, int64_t tokens,
                               int64_t features, int64_t lanes, int64_t width, void* panel,
                               float* scales) {
  scalar::quantize(x, dtype, stride, tokens, features, lanes, width, panel, scales);
}

void se::token_scales_scalar(const void* x, DType dtype, int64_t stride, int64_t tokens,
                             int64_t features, float* scales) {
  scalar::token_scales(x, dtype, stride, tokens, features, scales);
}

void se::pack_bytes_scalar(const void* x, DType dtype, int64_t stride, int64_t tokens,
                           int64_t features, int64_t width, const float* scales, void* panel) {
  scalar::pack_bytes(x, dtype, stride, tokens, features, width, scales, panel);
}

void se::store_panel_scalar(const PanelSums& sums, int64_t tokens, int64_t row0, int64_t rows,
                            const Epilogue& epilogue) {
  scalar::store_panel(sums, tokens, row0, rows, epilogue);
}

void se::store_token_scalar(const float* acc, float scale, int64_t row0, int64_t rows,
                            const Epilogue& epilogue) {
  scalar::store_token(acc, scale, row0, rows, epilogue);
}

bool se::pack_tiles_scalar(const void* x, DType dtype, int64_t stride, int64_t tokens,
                           int64_t features, int64_t parts, int64_t part, void* tiles) {
  return scalar::pack_tiles(x, dtype, stride, tokens, features, parts, part, tiles);
}

void se::quantize_tiles_scalar(const void* x, DType dtype, int64_t stride, int64_t tokens,
                               int64_t features, void* tiles, float* scales) {
  scalar::quantize_tiles(x, dtype, stride, tokens, features, tiles, scales);
}

void se::store_tiles_scalar(const void* sums, const float* token_scales, int64_t tokens,
                            int64_t row0, int64_t rows, const Epilogue& epilogue) {
  scalar::store_tiles(sums, token_scales, tokens, row0, rows, epilogue);
}
