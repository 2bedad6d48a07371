// Operations of a Transformer layer on panels, between its products. Every lane holds one token, so
// sums run over the rows of a panel and nothing is transposed.
#pragma once

#include <cstdint>

#include "core/capabilities.h"
#include "core/types.h"
#include "kernels/panel_io/kernel.h"

namespace se {

// y = act(sums * scales + bias) + other, or * other: rows of one panel to rows of another.
struct PanelEpilogue {
  Activation activation;
  const float* row_scales;  // [rows]: int8 weights only
  const float* bias;        // [rows], may be null
  const float* other;       // [rows][width], may be null; may be y
  bool multiply;            // by `other` instead of adding it: gated feed-forward layers
  float* y;                 // [rows][width]
};

// y = (x - mean) / sqrt(variance + epsilon) x gamma + beta (Ba, Kiros, Hinton 2016); `rms` omits
// the mean (Zhang, Sennrich 2019).
struct Norm {
  const float* gamma;  // [features], null for ones
  const float* beta;   // [features], null for zeros
  float epsilon;
  bool rms;
};

// Keys and values of consecutive positions: k of position j at feature d is k[d * k_feature + j].
// A span in bf16 holds at most the 64 positions of a page of the cache: k_feature is 64, v_feature
// is 1 and v_position is the head rounded up to 16. In any dtype, 16 keys or features are read at a
// time: memory past the last one must be readable.
struct KeySpan {
  const void *k, *v;
  DType dtype;
  int64_t k_feature, v_feature, v_position;
  int64_t keys;
};

// One head of up to 64 queries, in adjacent lanes of one panel, against all spans in turn.
struct Attention {
  const float* q;  // [head][stride]; 64 floats are readable from every q[d * stride]
  float* y;        // [head][stride]: only the lanes of the queries are written
  int64_t stride, queries, head;
  float scale;
  float soft_cap;  // scores become soft_cap x tanh(score / soft_cap); 0 for none
  const KeySpan* spans;
  int64_t count;
  bool causal;          // query i attends to key j only if j <= i
  int64_t first_query;  // position of query 0 among the keys
  int64_t window;       // and only if j > i - window, and without `causal` j < i + window; 0: all
  const float* bias;    // added to scores: bias[i - j]; null for none
  float* scratch;       // attention_scratch(head) floats, 64-byte aligned
};
constexpr int64_t kQueries = 64;
constexpr int64_t attention_scratch(int64_t head) {
  const int64_t rounded = (head + 31) / 32 * 32;
  return 96 * kQueries + 288 * rounded;
}

struct LayerPanelKernels {
  CompileTarget target;
  void (*finish)(const PanelSums& sums, int64_t rows, const PanelEpilogue& epilogue);
  // x, y [features][stride], of which the first `lanes`, a multiple of 16. y may be x.
  void (*norm)(const float* x, int64_t stride, int64_t features, int64_t lanes, const Norm& norm,
               float* y);
  // (x[i], x[half + i]) <- (x[i] c - x[half + i] s, x[half + i] c + x[i] s) for i < half, with
  // cosines and sines [half][stride] of each lane. x [2 half][stride].
  void (*rotate)(float* x, int64_t stride, int64_t half, int64_t lanes, const float* cosines,
                 const float* sines);
  // x [features][stride] -> quads [ceil(features / 4)][stride] and scales [lanes], in the format of
  // PanelIoKernels::quantize, for the first `lanes`, a multiple of 16.
  void (*quantize)(const float* x, int64_t stride, int64_t features, int64_t lanes, float* quads,
                   float* scales);
  // The same scales alone.
  void (*lane_scales)(const float* x, int64_t stride, int64_t features, int64_t lanes,
                      float* scales);
  // Rows of a panel of floats -> those of a panel of bf16, or with scales [width] of int8, in the
  // formats of PanelIoKernels::pack and pack_bytes.
  void (*rows_to_bf16)(const float* x, int64_t rows, int64_t width, void* panel);
  void (*rows_to_bytes)(const float* x, int64_t rows, int64_t width, const float* scales,
                        void* panel);
  // 16 lanes' powers and rows of a panel of halves, as PanelIoKernels::token_powers and
  // pack_halves. Null where no kernel reads halves.
  void (*lane_powers)(const float* x, int64_t stride, int64_t features, float* powers);
  void (*rows_to_halves)(const float* x, int64_t rows, int64_t width, const float* powers,
                         void* panel);
  // 16 lanes of x [features][stride] -> bf16 [ceil(features / 32)][16][32], the first operand of
  // tile products (PanelIoKernels::pack_tiles).
  void (*lanes_to_tiles)(const float* x, int64_t stride, int64_t features, void* tiles);
  // The same of quads [count][stride] -> int8 [ceil(count / 16)][16][64], without the offset.
  void (*quads_to_tiles)(const float* quads, int64_t stride, int64_t count, void* tiles);
  // sums [16 tokens][32], of 4 bytes each -> 16 lanes of acc [32][stride].
  void (*tiles_to_lanes)(const void* sums, int64_t stride, void* acc);
  // Attention with an online softmax: one pass over the keys (Milakov, Gimelshein 2018; Dao et al.
  // 2022).
  void (*attend)(const Attention& attention);
  // The same for a model in bf16: where the processor has tiles, queries, keys, probabilities and
  // values are rounded to bf16, as a dense model in bf16 does.
  void (*attend_bf16)(const Attention& attention);
};

// The first row of kernels.inc that `caps` covers.
const LayerPanelKernels& layer_panels(Capabilities caps);

#define SE_LAYER_PANELS(target)                                                                   \
  void finish_panel_##target(const PanelSums& sums, int64_t rows, const PanelEpilogue& epilogue); \
  void norm_panel_##target(const float* x, int64_t stride, int64_t features, int64_t lanes,       \
                           const Norm& norm, float* y);                                           \
  void rotate_panel_##target(float* x, int64_t stride, int64_t half, int64_t lanes,               \
                             const float* cosines, const float* sines);                           \
  void quantize_lanes_##target(const float* x, int64_t stride, int64_t features, int64_t lanes,   \
                               float* quads, float* scales);                                      \
  void lane_scales_##target(const float* x, int64_t stride, int64_t features, int64_t lanes,      \
                            float* scales);                                                       \
  void rows_to_bf16_##target(const float* x, int64_t rows, int64_t width, void* panel);           \
  void rows_to_bytes_##target(const float* x, int64_t rows, int64_t width, const float* scales,   \
                              void* panel);                                                       \
  void lanes_to_tiles_##target(const float* x, int64_t stride, int64_t features, void* tiles);    \
  void quads_to_tiles_##target(const float* quads, int64_t stride, int64_t count, void* tiles);   \
  void tiles_to_lanes_##target(const void* sums, int64_t stride, void* acc);                      \
  void attend_##target(const Attention& attention);
#include "kernels/layer_panels/kernels.inc"
#undef SE_LAYER_PANELS
#if SE_X86
void lane_powers_avx512(const float* x, int64_t stride, int64_t features, float* powers);
void rows_to_halves_avx512(const float* x, int64_t rows, int64_t width, const float* powers,
                           void* panel);
void attend_bf16_avx512_amx(const Attention& attention);
#endif

}  // namespace se
