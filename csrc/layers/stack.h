// A stack of Transformer layers in one call (Vaswani et al. 2017): encoders, and decoders that keep
// keys and values between calls. Many tokens run on panels, a few on rows; see run.
#pragma once

#include <array>
#include <vector>

#include "layers/layer_linear.h"
#include "layers/cache.h"
#include "kernels/layer_panels/kernel.h"

namespace se {

// after  post-norm:  x = norm1(x + attention(x));  x = norm2(x + feed_forward(x))
// before pre-norm:   x = x + attention(norm1(x));  x = x + feed_forward(norm2(x))
// feed_forward(x) = down(act(up(x))), or down(act(gate(x)) * up(x)) with a gate. With cross linears
// a second attention, with a norm of its own, stands between the two, whose keys and values come
// from the states of an encoder.
struct Layer {
  LayerLinear query, key, value;  // without key and value, query holds the rows of all three
  LayerLinear output, gate, up, down;
  Norm norm1, norm2;
  const Norm* query_norm;  // of each head, before rotation; null for none (Qwen3)
  const Norm* key_norm;
  LayerLinear cross_query, cross_key, cross_value, cross_output;
  Norm cross_norm;

  static constexpr int kLinears = 11;
  // All of them, present or not.
  std::array<const LayerLinear*, kLinears> linears() const {
    return {&query, &key,         &value,     &output,      &gate,        &up,
            &down,  &cross_query, &cross_key, &cross_value, &cross_output};
  }
};

// Rotary positions (Su et al. 2021): features i and half + i of every head turn by an angle of
// which row `position` of the tables has cosine and sine; features from 2 half on stay.
struct Rotary {
  const float *cosines, *sines;  // [positions][half]
  int64_t half, positions;       // half = 0 for none
};

struct Stack {
  int64_t hidden, heads, key_heads, head, inner;
  Activation activation;
  bool norm_first;
  bool causal;
  int64_t window;  // keys that a causal query sees; 0 for all
  float scale;     // of scores, usually 1 / sqrt(head)
  // Added to scores: bias[h * (2 * reach - 1) + reach - 1 + i - j]; null for none.
  const float* bias;
  int64_t reach;  // longest sequence that bias serves
  Rotary rotary;
  const Norm* last;  // after the last layer; null for none
  std::vector<Layer> layers;

  bool crosses() const { return !layers.empty() && layers[0].cross_query; }
  int64_t query_rows() const { return heads * head; }
  int64_t key_rows() const { return key_heads * head; }
  int64_t qkv_rows() const { return query_rows() + 2 * key_rows(); }
};

// Sequences one after another, x and y [sum of lengths][hidden] row-major: padding is never there.
// y may be x.
struct Batch {
  const float* x;
  float* y;
  std::vector<int64_t> lengths;
  const int64_t* positions;  // [sum of lengths], for rotary stacks
  // Earlier keys and values of as many sequences, to which the new ones are added; null for none.
  KvCache* cache;
  const KvCache* memory;  // of as many sequences, what `remember` made; for cross attention
};

// Whether every weight can multiply rows, or panels.
bool takes_rows(const Stack& stack);
bool takes_panels(const Stack& stack);

// Runs on omp_get_max_threads() threads; the result does not depend on their number. Up to
// kRowTokens tokens of a stack with a cache run on rows where its weights can, else on panels.
void run(const Stack& stack, const Batch& batch, Capabilities caps);

// The keys and values that cross attention reads, of an encoder's states x [sum of
// lengths][hidden]: `memory` is empty before, with room for them.
void remember(const Stack& stack, const float* x, const std::vector<int64_t>& lengths,
              KvCache& memory, Capabilities caps);

void run_on_panels(const Stack& stack, const Batch& batch, Capabilities caps);
void run_on_rows(const Stack& stack, const Batch& batch, Capabilities caps);

}  // namespace se
