// A stack of Transformer encoder layers in one call: activations stay in panels from the first
// layer to the last (Vaswani et al. 2017).
#pragma once

#include <vector>

#include "kernels/lanes/kernel.h"
#include "ops/linear.h"

namespace se {

// A weight that panels are multiplied with, Runs or Strips, and its bias [out] or null.
struct BlockLinear {
  const PackedWeight* weight;
  const float* bias;
};

// after  post-norm:  x = norm1(x + attention(x));  x = norm2(x + feed_forward(x))
// before pre-norm:   x = x + attention(norm1(x));  x = x + feed_forward(norm2(x))
// feed_forward(x) = down(act(up(x))), or down(act(gate(x)) * up(x)) with a gate.
struct EncoderLayer {
  BlockLinear query, key, value, output, gate, up, down;
  Norm norm1, norm2;
};

struct Encoder {
  int64_t hidden, heads, key_heads, head, inner;
  Activation activation;
  bool norm_first;
  bool causal;
  int64_t window;  // keys that a causal query sees; 0 for all
  float scale;     // of scores, usually 1 / sqrt(head)
  // Added to scores: bias[h * (2 * reach - 1) + reach - 1 + i - j]; null for none.
  const float* bias;
  int64_t reach;  // longest sequence that bias serves
  std::vector<EncoderLayer> layers;
};

// x, y [sum of lengths][hidden] float, row-major, sequences one after another: padding is never
// there. Runs on omp_get_max_threads() threads; the result does not depend on their number. y may
// be x.
void encode(const Encoder& encoder, const float* x, const std::vector<int64_t>& lengths, float* y,
            Isa isa);

}  // namespace se
