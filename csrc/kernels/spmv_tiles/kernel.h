// spmv_tiles: some bands of a weight in tiles times one to four tokens.
#pragma once

#include "core/capabilities.h"
#include "layouts/tiles.h"

namespace se {

struct SpmvTilesKernel {
  const char* name;
  DType weight;
  CompileTarget target;
  // Converts x [in] for `run`: `prepared` has 4 bytes per input, rounded up to 64 inputs; inputs
  // past `in` become zero. Returns the token's scale: 1, or for int8 max |x| / 127 (NaN for a
  // token with an Inf or NaN).
  float (*prepare)(const float* x, int64_t in, void* prepared);
  // y[t][r] = sum over k of W[r, k] * x[t][k] for rows 32 begin to 32 end - 1, int8 sums not scaled
  // yet.
  //   x  [tokens][x_stride bytes], prepared;  y  [tokens][y_stride] floats;  tokens  1 to 4
  // The weights are read once for all tokens. f32 and bf16 accumulate in float, int8 exactly. Zeros
  // of a stored tile are multiplied too, so Inf and NaN in x may reach rows that do not use the
  // column.
  void (*run)(const Tiles& w, int64_t begin, int64_t end, const void* x, int64_t x_stride,
              int64_t tokens, float* y, int64_t y_stride);
};

// The first row of kernels.inc for `weight` that `caps` covers.
const SpmvTilesKernel& spmv_tiles(DType weight, Capabilities caps);

#define SE_SPMV_TILES(weight, target)                                                            \
  float prepare_tiles_##weight##_##target(const float* x, int64_t in, void* prepared);           \
  void spmv_tiles_##weight##_##target(const Tiles& w, int64_t begin, int64_t end, const void* x, \
                                      int64_t x_stride, int64_t tokens, float* y,                \
                                      int64_t y_stride);
#include "kernels/spmv_tiles/kernels.inc"
#undef SE_SPMV_TILES

}  // namespace se
