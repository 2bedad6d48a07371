// The parts of a native layer as Python builds them: each checks itself, and keeps alive what its
// pointers point to.
#pragma once

#include <memory>

#include "bindings/weight.h"
#include "layers/layer.h"

namespace se {

using Floats = py::array_t<float, py::array::c_style>;

class BoundLinear {
 public:
  BoundLinear(const py::object& panels, const py::object& rows, std::optional<Floats> bias);
  const LayerLinear& view() const { return view_; }
  int64_t out() const { return out_; }
  int64_t in() const { return in_; }

 private:
  const PackedWeight* weight(const py::object& given, bool panels);

  py::object panels_, rows_;
  std::optional<Floats> bias_;
  int64_t out_ = 0, in_ = 0;
  LayerLinear view_{};
};

class BoundNorm {
 public:
  BoundNorm(std::optional<Floats> gamma, std::optional<Floats> beta, float epsilon, bool rms);
  const Norm* view() const { return &view_; }
  bool fits(int64_t features) const;

 private:
  std::optional<Floats> gamma_, beta_;
  Norm view_{};
};

class BoundRotary {
 public:
  BoundRotary(Floats cosines, Floats sines);
  const RotaryTable& view() const { return view_; }

 private:
  Floats cosines_, sines_;
  RotaryTable view_{};
};

class BoundBias {
 public:
  explicit BoundBias(Floats values);
  const PositionBias* view() const { return &view_; }
  int64_t heads() const { return values_.shape(0); }

 private:
  Floats values_;
  PositionBias view_{};
};

template <class T>
using Shared = std::shared_ptr<const T>;

struct BoundNorms {
  Shared<BoundNorm> input, output, sum;

  SublayerNorms view(int64_t hidden) const;  // checks the features
};

struct BoundAttention {
  AttentionSublayer view{};  // its `rotary` is set by the stack
  int64_t hidden;
  Shared<BoundLinear> query, key, value, output;
  Shared<BoundNorm> query_norm, key_norm;
  Shared<BoundRotary> rotary;
  Shared<BoundBias> position_bias;
  BoundNorms norms;

  void check();  // fills `view`
};

struct BoundFeedForward {
  FeedForwardSublayer view{};
  int64_t hidden;
  Shared<BoundLinear> gate, up, down;
  BoundNorms norms;

  void check();  // fills `view`
};

struct BoundLayer {
  Shared<BoundAttention> attention, cross_attention;
  Shared<BoundFeedForward> feed_forward;
  bool parallel;

  BoundLayer(Shared<BoundAttention> attention, Shared<BoundFeedForward> feed_forward,
             Shared<BoundAttention> cross_attention, bool parallel);
  Layer view() const;
  int64_t hidden() const { return attention->hidden; }
};

void bind_layer(py::module_& m);

}  // namespace se
