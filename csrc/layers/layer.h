// One Transformer layer (Vaswani et al. 2017): its weights, its norms and its geometry.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/layer_panels/kernel.h"
#include "layers/layer_linear.h"

namespace se {

// Rotary positions (Su et al. 2021): features i and half + i of a head are rotated by the angle
// whose cosine and sine stand in row `position` of the table. Features from 2 half on are copied.
struct RotaryTable {
  const float *cosines, *sines;  // [positions][half]
  int64_t half, positions;
};

// A bias that is added to attention scores, by head and by distance (Raffel et al. 2020).
struct PositionBias {
  const float* values;  // [heads][2 reach - 1], by query minus key
  int64_t reach;        // longest sequence for which there are values

  int64_t row_size() const { return 2 * reach - 1; }
  // The bias of query i and key j is of_head(h)[i - j].
  const float* of_head(int64_t head) const { return values + head * row_size() + reach - 1; }
};

// A sublayer computes x = sum(x + output(f(input(x)))), where each of the three norms may be null.
// Pre-norm models have `input`, post-norm models (BERT) have `sum`, OLMo 2 has `output`, and
// Gemma 2 has `input` and `output`.
struct SublayerNorms {
  const Norm *input, *output, *sum;
};

// Attention with grouped heads (Ainslie et al. 2023): heads / key_heads query heads read each pair
// of a key head and a value head.
struct AttentionSublayer {
  int64_t heads, key_heads, head_size;
  float scale;     // of the scores, usually 1 / sqrt(head_size)
  float soft_cap;  // scores are soft_cap x tanh(score / soft_cap) (Gemma 2); 0 for none
  bool causal;
  // Query i sees key j only if i - j < window, and without `causal` also only if j - i < window; 0
  // for all keys.
  int64_t window;
  int64_t rotary;                     // index into Stack::rotary_tables; -1 for none
  const PositionBias* position_bias;  // null for none
  LayerLinear query, key, value;      // without key and value, query has the rows of all three
  // Of such a query: whether the heads that share a key head stand before that key head and its
  // value head (GPT-NeoX), and not all queries before all keys and values.
  bool interleaved;
  LayerLinear output;
  const Norm *query_norm, *key_norm;  // of each head, before rotation (Qwen3); null for none
  SublayerNorms norms;

  explicit operator bool() const { return static_cast<bool>(query); }
  int64_t group() const { return heads / key_heads; }
  int64_t query_rows() const { return heads * head_size; }
  int64_t key_rows() const { return key_heads * head_size; }
  int64_t qkv_rows() const { return query_rows() + 2 * key_rows(); }

  // First rows of a query head, of a key head and of its value head, among the rows of all three.
  int64_t query_row(int64_t head) const {
    return (interleaved ? head + head / group() * 2 : head) * head_size;
  }
  int64_t key_row(int64_t key_head) const {
    return (interleaved ? key_head * (group() + 2) + group() : heads + key_head) * head_size;
  }
  int64_t value_row(int64_t key_head) const {
    return key_row(key_head) + (interleaved ? 1 : key_heads) * head_size;
  }
};

// down(activation(up(x))), or with a gate down(activation(gate(x)) * up(x)) (Shazeer 2020).
struct FeedForwardSublayer {
  int64_t inner;  // features of down's input
  Activation activation;
  LayerLinear gate, up, down;
  bool fused_gate;  // without `gate`: the first half of the rows of `up` is the gate (Phi-3)
  SublayerNorms norms;

  int64_t up_rows() const { return fused_gate ? 2 * inner : inner; }
};

// Layers of one stack may differ in everything but the hidden size.
struct Layer {
  AttentionSublayer attention;
  AttentionSublayer cross_attention;  // to an encoder's states; without a query there is none
  FeedForwardSublayer feed_forward;
  // Both sublayers read the same residual stream: x + attention(x) + feed_forward(x).
  bool parallel;

  static constexpr int kLinears = 11;
  // All linears, present or not.
  std::array<const LayerLinear*, kLinears> linears() const {
    const AttentionSublayer &a = attention, &c = cross_attention;
    const FeedForwardSublayer& f = feed_forward;
    return {&a.query, &a.key,   &a.value, &a.output, &f.gate,  &f.up,
            &f.down,  &c.query, &c.key,   &c.value,  &c.output};
  }
};

}  // namespace se
