#define SE_TARGET scalar
#include "simd/scalar.h"
#include "kernels/panel_io/kernel.h"
#include "kernels/panel_io/activation.inl.h"
#include "kernels/panel_io/body.inl.h"
// Kernels of this ISA read float panels only.
void se::pack_panel_scalar(const void* x, DType dtype, int64_t stride, int64_t tokens,
                           int64_t features, int64_t width, void* panel, DType) {
  scalar::pack(x, dtype, stride, tokens, features, width, static_cast<float*>(panel));
}

void se::quantize_panel_scalar(const void* x, DType dtype, int64_t stride, int64_t tokens,
                               int64_t features, int64_t lanes, int64_t width, void* panel,
                               float* scales) {
  scalar::quantize(x, dtype, stride, tokens, features, lanes, width, panel, scales);
}

void se::store_panel_scalar(const PanelSums& sums, int64_t tokens, int64_t row0, int64_t rows,
                            const Epilogue& epilogue) {
  scalar::store_panel(sums, tokens, row0, rows, epilogue);
}

void se::store_token_scalar(const float* acc, float scale, int64_t row0, int64_t rows,
                            const Epilogue& epilogue) {
  scalar::store_token(acc, scale, row0, rows, epilogue);
}
