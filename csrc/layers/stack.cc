#include "layers/stack.h"

#include <algorithm>
#include <numeric>

namespace se {
namespace {

template <class F>
bool every_linear(const Stack& stack, F f) {
  return std::all_of(stack.layers.begin(), stack.layers.end(), [&](const Layer& layer) {
    for (const LayerLinear* linear : layer.linears())
      if (*linear && !f(layer, *linear)) return false;
    return true;
  });
}

}  // namespace

LargestLayer::LargestLayer(const Stack& stack) {
  const auto add = [&](const AttentionSublayer& a) {
    query_rows = std::max(query_rows, a.query_rows());
    qkv_rows = std::max(qkv_rows, a.qkv_rows());
    head_size = std::max(head_size, a.head_size);
    group_rows = std::max(group_rows, a.group() * a.head_size);
  };
  for (const Layer& layer : stack.layers) {
    add(layer.attention);
    if (layer.cross_attention) add(layer.cross_attention);
    inner = std::max(inner, layer.feed_forward.inner);
    up_rows = std::max(up_rows, layer.feed_forward.up_rows());
  }
}

bool supports_rows(const Stack& stack) {
  // Keys and values of a memory are always computed on panels.
  return every_linear(stack, [](const Layer& layer, const LayerLinear& linear) {
    const AttentionSublayer& cross = layer.cross_attention;
    return linear.rows || &linear == &cross.key || &linear == &cross.value;
  });
}

bool supports_panels(const Stack& stack) {
  return every_linear(
      stack, [](const Layer&, const LayerLinear& linear) { return linear.panels != nullptr; });
}

std::optional<StepLayout> step_layout(const Stack& stack, int64_t tokens, bool cached) {
  if (cached && tokens <= kRowTokens && supports_rows(stack)) return StepLayout::rows;
  if (supports_panels(stack)) return StepLayout::panels;
  return std::nullopt;
}

void run(const Stack& stack, const Batch& batch, Capabilities caps) {
  const int64_t tokens = std::accumulate(batch.lengths.begin(), batch.lengths.end(), int64_t{0});
  if (step_layout(stack, tokens, batch.cache != nullptr) == StepLayout::rows)
    run_on_rows(stack, batch, caps);
  else
    run_on_panels(stack, batch, caps);
}

}  // namespace se
