// Conversion into and out of what products read and write: row-major activations to panels or tiles
// of tokens, and results back, with the epilogue.
#pragma once

#include <cstdint>

#include "core/capabilities.h"
#include "core/types.h"

namespace se {

// y = act(sum * scales + bias) + residual, all row-major [token][out]. Every pointer but y may be
// null.
struct Epilogue {
  Activation activation;
  const float* row_scales;  // [out]: int8 weights only
  const float* bias;        // [out]
  const void* residual;     // [tokens][residual_stride], dtype of y
  int64_t residual_stride;
  void* y;  // [tokens][y_stride]
  int64_t y_stride;
  DType dtype;  // of y and residual
  bool stream;  // y is larger than the caches: bypass them
};

// The sums of a product: [rows][width] floats, or int32 where token_scales [width] is given.
struct PanelSums {
  const void* acc;
  int64_t width;
  const float* token_scales;
};

struct PanelIoKernels {
  CompileTarget target;
  // x [tokens][stride] -> panel [features][width] of floats or bf16; lanes past `tokens` become
  // zero. A panel of floats is in token order. A panel of bf16 orders each 32 tokens as
  // 0-3 16-19 4-7 20-23 8-11 24-27 12-15 28-31, which unpacklo and unpackhi undo at no cost; one of
  // 16 tokens is in token order.
  void (*pack)(const void* x, DType dtype, int64_t stride, int64_t tokens, int64_t features,
               int64_t width, void* panel, Panel kind);
  // x [tokens][stride] -> panel [ceil(features / 4)][width] of quads of bytes round(x / scale) +
  // 128 with scales[token] = max |x| / 127: symmetric, one scale per token. Bytes past `features`
  // and `tokens` represent zero. A token with an Inf or NaN gets the scale NaN. Writes `lanes`, a
  // multiple of 16, of the panel's `width` tokens, so that threads may share a panel.
  void (*quantize)(const void* x, DType dtype, int64_t stride, int64_t tokens, int64_t features,
                   int64_t lanes, int64_t width, void* panel, float* scales);
  // scales[token] = max |x| / 127 as `quantize` writes them.
  void (*token_scales)(const void* x, DType dtype, int64_t stride, int64_t tokens, int64_t features,
                       float* scales);
  // x [tokens][stride] -> panel [features][width] of int8 round(x / scale), for scales [width] of
  // token_scales and zeros. Orders each 32 tokens as 0-7 16-23 8-15 24-31, as unpacklo and unpackhi
  // of bytes do; a panel of 16 tokens is in token order.
  void (*pack_bytes)(const void* x, DType dtype, int64_t stride, int64_t tokens, int64_t features,
                     int64_t width, const float* scales, void* panel);
  // powers[token]: of two, above every finite |x|, or 2^127. Null where no kernel reads halves.
  void (*token_powers)(const void* x, DType dtype, int64_t stride, int64_t tokens, int64_t features,
                       float* powers);
  // x [tokens][stride] -> panel [features][width] of float16 x / power, in token order. The whole
  // panel is followed by the powers [width], as floats.
  void (*pack_halves)(const void* x, DType dtype, int64_t stride, int64_t tokens, int64_t features,
                      int64_t width, const float* powers, void* panel);
  // sums [rows][width] -> y[token][row0 + row] for token < tokens, with the epilogue.
  void (*store)(const PanelSums& sums, int64_t tokens, int64_t row0, int64_t rows,
                const Epilogue& epilogue);
  // acc [rows] of one token -> y[row0 + row], with the epilogue; `scale` multiplies row_scales.
  void (*store_token)(const float* acc, float scale, int64_t row0, int64_t rows,
                      const Epilogue& epilogue);
  // x [tokens][stride] of up to 16 tokens -> [ceil(features / 32)][16][32] bf16; zeros past
  // `tokens` and `features`. With 3 parts each float becomes a sum of three bf16, `part` elements
  // apart; returns false if one is Inf, NaN or above 3.389e38, which have no such sum.
  bool (*pack_tiles)(const void* x, DType dtype, int64_t stride, int64_t tokens, int64_t features,
                     int64_t parts, int64_t part, void* tiles);
  // x -> [ceil(features / 64)][16][64] int8, and scales [16], both as `quantize`, without the 128.
  void (*quantize_tiles)(const void* x, DType dtype, int64_t stride, int64_t tokens,
                         int64_t features, void* tiles, float* scales);
  // sums [tokens][32] floats, or int32 where token_scales [tokens] is given -> y[token][row0 + row]
  // for rows up to 32, with the epilogue.
  void (*store_tiles)(const void* sums, const float* token_scales, int64_t tokens, int64_t row0,
                      int64_t rows, const Epilogue& epilogue);
};

// The first row of kernels.inc that `caps` covers.
const PanelIoKernels& panel_io(Capabilities caps);

#define SE_PANEL_IO(target)                                                                    \
  void pack_panel_##target(const void* x, DType dtype, int64_t stride, int64_t tokens,         \
                           int64_t features, int64_t width, void* panel, Panel kind);          \
  void quantize_panel_##target(const void* x, DType dtype, int64_t stride, int64_t tokens,     \
                               int64_t features, int64_t lanes, int64_t width, void* panel,    \
                               float* scales);                                                 \
  void token_scales_##target(const void* x, DType dtype, int64_t stride, int64_t tokens,       \
                             int64_t features, float* scales);                                 \
  void pack_bytes_##target(const void* x, DType dtype, int64_t stride, int64_t tokens,         \
                           int64_t features, int64_t width, const float* scales, void* panel); \
  void store_panel_##target(const PanelSums& sums, int64_t tokens, int64_t row0, int64_t rows, \
                            const Epilogue& epilogue);                                         \
  void store_token_##target(const float* acc, float scale, int64_t row0, int64_t rows,         \
                            const Epilogue& epilogue);                                         \
  bool pack_tiles_##target(const void* x, DType dtype, int64_t stride, int64_t tokens,         \
                           int64_t features, int64_t parts, int64_t part, void* tiles);        \
  void quantize_tiles_##target(const void* x, DType dtype, int64_t stride, int64_t tokens,     \
                               int64_t features, void* tiles, float* scales);                  \
  void store_tiles_##target(const void* sums, const float* token_scales, int64_t tokens,       \
                            int64_t row0, int64_t rows, const Epilogue& epilogue);
#include "kernels/panel_io/kernels.inc"
#undef SE_PANEL_IO
#if SE_X86
void token_powers_avx512(const void* x, DType dtype, int64_t stride, int64_t tokens,
                         int64_t features, float* powers);
void pack_halves_avx512(const void* x, DType dtype, int64_t stride, int64_t tokens,
                        int64_t features, int64_t width, const float* powers, void* panel);
#endif

}  // namespace se
