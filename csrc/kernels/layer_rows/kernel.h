// Operations of a Transformer layer on a few row-major tokens, between its products. Lanes hold
// features; in attention they hold positions for the scores and features for the sums.
#pragma once

#include <cstdint>

#include "core/capabilities.h"
#include "core/types.h"
#include "kernels/layer_panels/kernel.h"

namespace se {

// The query heads of one token that share a key head, against pages of 64 positions of a cache.
struct RowAttention {
  const float* q;  // [queries][head]
  float* y;        // [queries][head]
  int64_t queries, head;
  float scale;
  float soft_cap;             // scores become soft_cap x tanh(score / soft_cap); 0 for none
  const void* const* keys;    // one page each: [head][64]
  const void* const* values;  // one page each: [64][width], zeros past `head`
  DType dtype;                // of both, f32 or bf16
  int64_t width;              // of a row of values, a multiple of 16
  int64_t begin, end;         // visible positions, counted from the first page
  const float* bias;          // added to scores: bias[query * bias_query - position]; null for none
  int64_t bias_query;
  float* scratch;  // row_attention_scratch(width) floats
};
constexpr int64_t row_attention_scratch(int64_t width) { return 4 * (64 + width); }

struct LayerRowKernels {
  CompileTarget target;
  // x, y [features]; y may be x.
  void (*norm)(const float* x, int64_t features, const Norm& norm, float* y);
  // y[i] = x[i] * y[i]
  void (*multiply)(const float* x, int64_t n, float* y);
  // (x[i], x[half + i]) <- (x[i] c - x[half + i] s, x[half + i] c + x[i] s) for i < half, with
  // cosines and sines [half].
  void (*rotate)(float* x, int64_t half, const float* cosines, const float* sines);
  // Attention with an online softmax: one pass over the keys (Milakov, Gimelshein 2018).
  void (*attend)(const RowAttention& attention);
};

// The first row of kernels.inc that `caps` covers.
const LayerRowKernels& layer_rows(Capabilities caps);

#define SE_LAYER_ROWS(target)                                                                 \
  void norm_row_##target(const float* x, int64_t features, const Norm& norm, float* y);       \
  void multiply_row_##target(const float* x, int64_t n, float* y);                            \
  void rotate_row_##target(float* x, int64_t half, const float* cosines, const float* sines); \
  void attend_row_##target(const RowAttention& attention);
#include "kernels/layer_rows/kernels.inc"
#undef SE_LAYER_ROWS

}  // namespace se
