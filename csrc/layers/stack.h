// A stack of Transformer layers that runs in one call: an encoder, or a decoder that keeps keys and
// values between calls.
#pragma once

#include <optional>
#include <vector>

#include "layers/cache.h"
#include "layers/layer.h"

namespace se {

struct Stack {
  int64_t hidden;
  std::vector<Layer> layers;
  std::vector<RotaryTable> rotary_tables;  // layers refer to them by index
  const Norm* final_norm;                  // after the last layer; null for none

  // Either all layers have cross attention, or none has.
  bool has_cross_attention() const { return !layers.empty() && layers[0].cross_attention; }
};

// The most that any layer needs: buffers are allocated once for all layers.
struct LargestLayer {
  int64_t query_rows = 0, qkv_rows = 0, inner = 0, up_rows = 0, head_size = 0, group_rows = 0;

  explicit LargestLayer(const Stack& stack);
};

// Sequences one after another without padding: x and y are [sum of lengths][hidden], row-major.
// y may be x.
struct Batch {
  const float* x;
  float* y;
  std::vector<int64_t> lengths;
  const int64_t* positions;  // [sum of lengths], row of the rotary tables for each token
  // Keys and values of earlier tokens, one entry for each sequence; the new ones are appended. Null
  // for none.
  KvCache* cache;
  const KvCache* memory;  // for cross attention: what encode_memory filled, for as many sequences
};

// How the activations of a step are laid out.
enum class StepLayout { rows, panels };

// The layout of a step of `tokens`: rows for up to kRowTokens tokens of a stack with a cache, else
// panels. Nothing if a weight lacks the packing for that.
std::optional<StepLayout> step_layout(const Stack& stack, int64_t tokens, bool cached);

// Whether every weight has the packing that a step on rows, or on panels, reads.
bool supports_rows(const Stack& stack);
bool supports_panels(const Stack& stack);

// Runs all layers on omp_get_max_threads() threads. The result does not depend on their number.
void run(const Stack& stack, const Batch& batch, Capabilities caps);

// Computes the keys and values that cross attention reads from an encoder's states x [sum of
// lengths][hidden]. `memory` is empty before the call, with room reserved for them.
void encode_memory(const Stack& stack, const float* x, const std::vector<int64_t>& lengths,
                   KvCache& memory, Capabilities caps);

void run_on_panels(const Stack& stack, const Batch& batch, Capabilities caps);
void run_on_rows(const Stack& stack, const Batch& batch, Capabilities caps);

}  // namespace se
