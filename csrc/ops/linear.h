// linear: y = act(x W^T + bias) + residual for a packed W and any number of tokens.
#pragma once

#include <variant>

#include "kernels/panel_io/kernel.h"
#include "layouts/bits.h"
#include "layouts/columns.h"
#include "layouts/groups.h"
#include "layouts/runs.h"
#include "layouts/sellp.h"
#include "layouts/strips.h"
#include "layouts/tiles.h"

namespace se {

using PackedWeight = std::variant<Runs, Strips, SellP, Bits, Groups, Tiles, Columns>;

// Row-major activations, float or bf16: [tokens][stride].
struct Activations {
  const void* x;
  DType dtype;
  int64_t stride, tokens, features;
  const char* at(int64_t token, int64_t feature) const {
    return static_cast<const char*>(x) + (token * stride + feature) * (dtype == DType::f32 ? 4 : 2);
  }
};

// y = act(x W^T + bias) + residual. The epilogue holds y, bias and residual; y must not overlap x.
// x.features equals the columns of W. Runs on omp_get_max_threads() threads, which
// torch.set_num_threads sets, since both use one OpenMP runtime. The result does not depend on the
// number of threads: each output is computed by one thread, in one order.
void linear(const Strips& w, const Activations& x, const Epilogue& epilogue, Capabilities caps);
void linear(const Runs& w, const Activations& x, const Epilogue& epilogue, Capabilities caps);
void linear(const Columns& w, const Activations& x, const Epilogue& epilogue, Capabilities caps);
void linear(const Tiles& w, const Activations& x, const Epilogue& epilogue, Capabilities caps);

// Fast for a few tokens, correct for any number.
void linear(const SellP& w, const Activations& x, const Epilogue& epilogue, Capabilities caps);
void linear(const Bits& w, const Activations& x, const Epilogue& epilogue, Capabilities caps);
void linear(const Groups& w, const Activations& x, const Epilogue& epilogue, Capabilities caps);
void linear_on_rows(const Strips& w, const Activations& x, const Epilogue& epilogue,
                    Capabilities caps);

void linear_on_rows(const Tiles& w, const Activations& x, const Epilogue& epilogue,
                    Capabilities caps);

// Up to this many tokens, tiles are multiplied with one token after the other in the lanes.
constexpr int64_t kTilesRowTokens = 4;
// Up to this many tokens, strips are multiplied with rows in the lanes: one vector of weights then
// serves all tokens.
constexpr int64_t kStripsRowTokens = 8;

// Name of the kernel that `linear` runs, e.g. "spmm_runs_f32_avx512". Of `w` only the kind,
// the dtype and whether there are powers matter. Throws std::invalid_argument where there is none.
const char* linear_kernel(const PackedWeight& w, int64_t tokens, Capabilities caps);

// y = act(x W^T + bias) on panels of floats, as the native layers hold them: x [panels][in][width]
// to y [panels][out][width], with width from linear_panel_width. Runs, strips and columns only.
struct LinearPanels {
  const float* x;
  int64_t panels, in, width;
  const float* bias;  // [out], may be null
  Activation activation;
  float* y;
};
void linear_on_panels(const PackedWeight& w, const LinearPanels& panels, Capabilities caps);
// The width of panels for `tokens` tokens: the narrowest that holds them all, or the widest one.
int64_t linear_panel_width(const PackedWeight& w, int64_t tokens, Capabilities caps);

// `e` with y and residual advanced to `token`.
Epilogue at_token(const Epilogue& e, int64_t token);

}  // namespace se
