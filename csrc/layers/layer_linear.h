// A linear of a native layer.
#pragma once

#include "ops/linear.h"

namespace se {

// One weight in up to two packings, and its bias. A step of many tokens reads `panels`, which is
// Runs, Strips or Tiles of bf16 or int8; a step of a few tokens reads `rows`, which is any packing
// but Runs. Both may be one packing. A packing that is null is never read.
struct LayerLinear {
  const PackedWeight* panels;
  const PackedWeight* rows;
  const float* bias;  // [out], or null
  explicit operator bool() const { return panels || rows; }
};

// The most tokens of a step that runs on rows.
constexpr int64_t kRowTokens = 7;

}  // namespace se
