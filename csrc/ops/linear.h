// linear: y = act(x W^T + bias) + residual for a packed W and any number of tokens.
#pragma once

#include <variant>

#include "kernels/panel_io/kernel.h"
#include "layouts/bits.h"
#include "layouts/groups.h"
#include "layouts/runs.h"
#include "layouts/sellp.h"
#include "layouts/strips.h"

namespace se {

using PackedWeight = std::variant<Runs, Strips, SellP, Bits, Groups>;

// Row-major activations, float or bf16: [tokens][stride].
struct Activations {
  const void* x;
  DType dtype;
  int64_t stride, tokens, features;
  const char* at(int64_t token, int64_t feature) const {
    return static_cast<const char*>(x) + (token * stride + feature) * (dtype == DType::f32 ? 4 : 2);
  }
};

// The epilogue says where y goes; y must not overlap x. `features` are W's columns. Runs on
// omp_get_max_threads() threads (torch.set_num_threads governs it: both share one OpenMP). The
// result does not depend on the number of threads: one thread computes each output, in one order.
void linear(const Strips& w, const Activations& x, const Epilogue& epilogue, Isa isa);
void linear(const Runs& w, const Activations& x, const Epilogue& epilogue, Isa isa);

// Made for a few tokens, right for any number.
void linear(const SellP& w, const Activations& x, const Epilogue& epilogue, Isa isa);
void linear(const Bits& w, const Activations& x, const Epilogue& epilogue, Isa isa);
void linear(const Groups& w, const Activations& x, const Epilogue& epilogue, Isa isa);
void linear_on_rows(const Strips& w, const Activations& x, const Epilogue& epilogue, Isa isa);

// As many tokens as (tall) strips multiply faster with rows in the lanes: a vector of weights
// serves them all.
constexpr int64_t kStripsRowTokens = 8;

// The same on panels of floats, as blocks hold them: x [panels][in][width] to y
// [panels][out][width], with width from linear_panel_width. Runs and strips only.
struct LinearPanels {
  const float* x;
  int64_t panels, in, width;
  const float* bias;  // [out], may be null
  Activation activation;
  float* y;
};
void linear_on_panels(const PackedWeight& w, const LinearPanels& panels, Isa isa);
// The width of panels that hold `tokens`: the narrowest that holds all, or the widest there is.
int64_t linear_panel_width(const PackedWeight& w, int64_t tokens, Isa isa);

// The epilogue for results that begin at `token`.
Epilogue at_token(const Epilogue& e, int64_t token);

}  // namespace se
