#include "layers/stack.h"

#include <algorithm>
#include <numeric>
#include <variant>

namespace se {
namespace {

template <class F>
bool every_linear(const Stack& stack, F f) {
  return std::all_of(stack.layers.begin(), stack.layers.end(), [&](const Layer& l) {
    for (const LayerLinear* b : l.linears())
      if (*b && !f(l, *b)) return false;
    return true;
  });
}

}  // namespace

bool takes_rows(const Stack& stack) {
  // Keys and values of a memory are many at a time.
  return every_linear(stack, [](const Layer& l, const LayerLinear& b) {
    return b.rows || &b == &l.cross_key || &b == &l.cross_value;
  });
}

bool takes_panels(const Stack& stack) {
  return every_linear(stack,
                      [](const Layer&, const LayerLinear& b) { return b.panels != nullptr; });
}

void run(const Stack& stack, const Batch& batch, Capabilities caps) {
  const int64_t tokens = std::accumulate(batch.lengths.begin(), batch.lengths.end(), int64_t{0});
  if (batch.cache && tokens <= kRowTokens && takes_rows(stack))
    run_on_rows(stack, batch, caps);
  else
    run_on_panels(stack, batch, caps);
}

}  // namespace se
