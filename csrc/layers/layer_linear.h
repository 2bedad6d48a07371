// A linear inside a native block.
#pragma once

#include "ops/linear.h"

namespace se {

// A weight, its bias [out] or null. `panels` (Runs or Strips) multiplies many tokens, `rows` (any
// packing but Runs) a few; one of them may be null, and is then never used.
struct LayerLinear {
  const PackedWeight* panels;
  const PackedWeight* rows;
  const float* bias;
  explicit operator bool() const { return panels || rows; }
};

// As many tokens as run on rows.
constexpr int64_t kRowTokens = 7;

}  // namespace se
