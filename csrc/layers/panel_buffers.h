// The buffers of a pass on panels, and how its threads share the work.
#pragma once

#include <omp.h>

#include <cstdint>
#include <vector>

#include "kernels/layer_panels/kernel.h"

namespace se {

// Panels at a fixed distance: one for each panel of the pass, or one for each thread where a thread
// computes a panel by itself and no other thread reads the buffer.
struct PanelBuffer {
  float* data = nullptr;
  int64_t stride = 0;
  bool per_thread = false;

  float* panel(int64_t p) const { return data + (per_thread ? omp_get_thread_num() : p) * stride; }
};

// Activations of a pass. A panel is [features][width] for the features of the layer at hand, and
// has room for those of the largest layer.
struct PanelBuffers {
  PanelBuffer x;      // the residual stream
  PanelBuffer h;      // a norm of it, or the output of a sublayer before its norm
  PanelBuffer mixed;  // attention's output
  PanelBuffer inner;  // of the feed-forward, with room for a fused gate
  // Queries, keys and values. Layers use the two in turn: a thread may be one layer ahead of
  // another one that still reads its keys.
  PanelBuffer qkv[2];
  PanelBuffer quads, scales;      // quantised input of int8 weights, and a scale for each token
  PanelBuffer tiles, byte_tiles;  // input of weights in tiles of bf16 and int8
  PanelBuffer bf16, bytes;        // input of weights in columns of bf16 and int8
  PanelBuffer halves;             // input of products in float16, and a power for each token
  struct Angles {
    PanelBuffer cosines, sines;  // [half][width]
  };
  std::vector<Angles> angles;  // of each rotary table

  // The input of a kernel that reads panels of `kind`, made from `x` by PanelPass::prepare.
  const PanelBuffer& of(Panel kind, const PanelBuffer& floats) const {
    if (kind == Panel::floats) return floats;
    if (kind == Panel::halves) return halves;
    return kind == Panel::bf16 ? bf16 : kind == Panel::quads ? quads : bytes;
  }
};

// What a thread does not share.
struct PanelThreadBuffers {
  float *sums, *scratch;
  KeySpan* spans;
  float *band, *band_sums;  // of weights in tiles: an expanded band, and its sums
};

// Panels [first, last) of a stage, computed by the calling thread alone or by all threads together.
struct PanelRange {
  bool one_thread;
  int64_t first, last;

  PanelRange only(int64_t p) const { return {one_thread, p, p + 1}; }
  int64_t panels() const { return last - first; }

  // f(i) for all items; with `wait`, none returns before all are done.
  template <class F>
  void for_items(int64_t items, bool wait, F f) const {
    if (one_thread) {
      for (int64_t i = 0; i < items; ++i) f(i);
      return;
    }
#pragma omp for schedule(dynamic) nowait
    for (int64_t i = 0; i < items; ++i) f(i);
    if (wait) {
#pragma omp barrier
    }
  }

  // f of the whole range, or of one panel after another where one thread computes it: a panel then
  // stays in that thread's cache from one product to the next.
  template <class F>
  void for_ranges(F f) const {
    if (!one_thread) return f(*this);
    for (int64_t p = first; p < last; ++p) f(only(p));
  }
};

}  // namespace se
