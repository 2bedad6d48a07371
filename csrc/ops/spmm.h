// Products with panels: the division of a packed weight into chunks of rows, and its kernel. Used
// by the op on row-major activations and by the native layers.
#pragma once

#include <algorithm>

#include "kernels/layer_panels/kernel.h"
#include "kernels/spmm_columns/kernel.h"
#include "kernels/spmm_half_runs/kernel.h"
#include "kernels/spmm_runs/kernel.h"
#include "kernels/spmm_strips/kernel.h"
#include "ops/linear.h"
#include "ops/workspace.h"

namespace se {

// Panels packed at a time. Bounds the working memory; one pass over the weights serves them all.
constexpr int64_t kPanelsPerPass = 8;

struct StripsWork {
  const Strips& w;
  const SpmmStripsKernel& kernel;
  int64_t step;  // strips of a chunk, small enough to balance the threads

  // Chunks are multiples of `row_group` rows.
  StripsWork(const Strips& weight, Capabilities caps, int threads, int64_t row_group = 1)
      : w(weight),
        kernel(spmm_strips(weight.dtype, caps)),
        step(strips_per_chunk(weight, threads, row_group)) {}

  static int64_t strips_per_chunk(const Strips& w, int threads, int64_t row_group) {
    // Accumulators of a chunk (128 x 64 floats = 32 KiB) stay in L1 or L2 until they are stored.
    const int64_t rows = std::clamp<int64_t>(w.out / (4 * threads), 16, 128);
    const int64_t group = std::max<int64_t>(1, row_group / w.height);
    return ceil_div(std::max<int64_t>(1, rows / w.height), group) * group;
  }
  static int64_t entries(const Strips& w) { return w.pointers[w.k_blocks * w.strips] * w.height; }

  const float* row_scales() const { return nullptr; }
  int64_t chunks() const { return ceil_div(w.strips, step); }
  int64_t entries_before(int64_t c) const {
    return se::entries_before(w, std::min(c * step, w.strips));
  }
  int64_t row0(int64_t c) const { return c * step * w.height; }
  int64_t rows(int64_t c) const { return std::min(step * w.height, w.out - row0(c)); }
  int64_t sums() const { return step * w.height; }
  int64_t max_tokens() const { return 64; }
  int64_t min_tokens() const { return kernel.min_tokens; }
  void run(int64_t c, const void* x, int64_t width, void* acc) const {
    kernel.run(w, c * step, std::min((c + 1) * step, w.strips), x, width, static_cast<float*>(acc));
  }
};

struct ColumnsWork {
  const Columns& w;
  const SpmmColumnsKernel& kernel;
  int64_t step;  // bands of a chunk

  ColumnsWork(const Columns& weight, Capabilities caps, int threads)
      : w(weight),
        kernel(spmm_columns(weight.dtype, caps)),
        step(std::max<int64_t>(1, std::clamp<int64_t>(w.out / (4 * threads), 16, 128) / w.height)) {
  }

  static int64_t entries(const Columns& w) { return w.pointers[w.bands] * w.step() * w.height; }
  const float* row_scales() const { return w.scales; }  // int8 only
  int64_t chunks() const { return ceil_div(w.bands, step); }
  int64_t row0(int64_t c) const { return c * step * w.height; }
  int64_t rows(int64_t c) const { return std::min(step * w.height, w.out - row0(c)); }
  int64_t sums() const { return step * w.height; }
  int64_t max_tokens() const { return 64; }
  int64_t min_tokens() const { return kernel.min_tokens; }
  void run(int64_t c, const void* x, int64_t width, void* acc) const {
    kernel.run(w, c * step, std::min((c + 1) * step, w.bands), x, width, acc);
  }
};

struct RunsWork {
  const Runs& w;
  const SpmmRunsKernel& kernel;

  // Runs with powers are multiplied in float16 where `halves` allows it.
  RunsWork(const Runs& weight, Capabilities caps, bool halves)
      : w(weight),
        kernel(weight.powers && halves ? spmm_half_runs(weight.dtype, caps)
                                       : spmm_runs(weight.dtype, caps)) {}

  static int64_t entries(const Runs& w) { return w.starts[w.chunks * w.k_blocks].value; }

  const float* row_scales() const { return w.scales; }  // int8 only
  int64_t chunks() const { return w.chunks; }
  int64_t entries_before(int64_t c) const { return w.starts[c * w.k_blocks].value; }
  int64_t row0(int64_t c) const { return c * w.chunk; }
  int64_t rows(int64_t c) const { return std::min(w.chunk, w.out - row0(c)); }
  int64_t sums() const { return w.chunk + 1; }
  int64_t max_tokens() const { return kernel.max_tokens; }
  int64_t min_tokens() const { return 16; }
  void run(int64_t c, const void* x, int64_t width, void* acc) const {
    kernel.run(w, c, x, width, acc);
  }
};

// The narrowest panel that holds `tokens`, or `widest`.
inline int64_t panel_width(int64_t tokens, int64_t narrowest, int64_t widest) {
  int64_t width = narrowest;
  while (width < widest && width < tokens) width *= 2;
  return width;
}

// Bytes of `features` of one lane of a panel.
inline int64_t lane_bytes(Panel kind, int64_t features) {
  if (kind == Panel::quads) return ceil_div(features, 4) * 4;
  if (kind == Panel::bytes) return features;
  return features * (kind == Panel::floats ? 4 : 2);
}

// Bytes of a whole panel.
inline int64_t panel_bytes(Panel kind, int64_t features, int64_t width) {
  return width * (lane_bytes(kind, features) + (kind == Panel::halves ? 4 : 0));
}

// Calls f with the RunsWork or StripsWork of a weight, with a kernel that reads panels of floats or
// quads. Chunks of strips are multiples of `row_group` rows.
template <class F>
auto with_panel_work(const PackedWeight& w, Capabilities caps, int threads, F f,
                     int64_t row_group = 1) {
  caps = caps - cap::only::bf16 - cap::only::amx_bf16;
  if (const Runs* runs = std::get_if<Runs>(&w)) return f(RunsWork(*runs, caps, false));
  return f(StripsWork(std::get<Strips>(w), caps, threads, row_group));
}

// The same for native layers, with the kernel's own kind of panel: lists of columns, too, and
// products in float16.
template <class F>
auto with_layer_work(const PackedWeight& w, Capabilities caps, int threads, F f) {
  if (const Columns* columns = std::get_if<Columns>(&w))
    return f(ColumnsWork(*columns, caps, threads));
  if (const Runs* runs = std::get_if<Runs>(&w)) return f(RunsWork(*runs, caps, true));
  return with_panel_work(w, caps, threads, f);
}

// Multiplies the rows of chunk c with one panel x of the kernel's kind. `epilogue` is that of the
// weight's row 0; `sums` is scratch memory of the calling thread.
template <class Work>
void multiply_chunk(const Work& work, const LayerPanelKernels& lanes, int64_t c, const void* x,
                    const float* token_scales, int64_t width, PanelEpilogue epilogue, float* sums) {
  const int64_t row = work.row0(c);
  work.run(c, x, width, sums);
  if (epilogue.row_scales) epilogue.row_scales += row;
  if (epilogue.bias) epilogue.bias += row;
  if (epilogue.other) epilogue.other += row * width;
  epilogue.y += row * width;
  lanes.finish({sums, width, token_scales}, work.rows(c), epilogue);
}

}  // namespace se
