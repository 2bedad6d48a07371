// What the weights of native layers read in place of panels of floats.
#pragma once

#include <algorithm>

#include "layers/panel_buffers.h"
#include "layers/panel_layout.h"
#include "ops/spmm.h"

namespace se {

struct PanelInputs {
  bool bf16 = false, halves = false, quads = false, bytes = false;
  bool tiles = false, byte_tiles = false;  // byte_tiles are made from quads

  void add(const PackedWeight& weight, Capabilities caps) {
    if (const Tiles* w = std::get_if<Tiles>(&weight)) {
      const bool int8 = w->dtype == DType::i8;
      quads |= int8;
      byte_tiles |= int8;
      tiles |= !int8;
      return;
    }
    const Panel kind =
        with_layer_work(weight, caps, 1, [](const auto& work) { return work.kernel.panel; });
    bf16 |= kind == Panel::bf16;
    halves |= kind == Panel::halves;
    quads |= kind == Panel::quads;
    bytes |= kind == Panel::bytes;
  }
};

// f(panel, first of 16 lanes), for all lanes of a range.
template <class F>
void for_lanes(const PanelRange& range, const PanelLayout& layout, F f) {
  const int64_t parts = layout.widest / 16;
  range.for_items(range.panels() * parts, true, [&](int64_t i) {
    const int64_t p = range.first + i / parts, lane = i % parts * 16;
    if (lane < layout.width(p)) f(p, lane);
  });
}

// Converts panels of floats x [features][width] into those buffers of b that `inputs` names.
inline void convert_inputs(const PanelInputs& inputs, const PanelRange& range,
                           const PanelLayout& layout, const PanelBuffers& b,
                           const LayerPanelKernels& kernels, const PanelBuffer& x,
                           int64_t features) {
  const auto powers_of = [&](int64_t p) {
    return b.halves.panel(p) + features * layout.width(p) / 2;
  };
  if (inputs.quads || inputs.bytes || inputs.halves || inputs.tiles)
    for_lanes(range, layout, [&](int64_t p, int64_t lane) {
      const int64_t width = layout.width(p);
      const float* from = x.panel(p) + lane;
      if (inputs.tiles)
        kernels.lanes_to_tiles(from, width, features,
                               b.tiles.panel(p) + lane * (ceil_div(features, 32) * 16));
      if (inputs.halves) kernels.lane_powers(from, width, features, powers_of(p) + lane);
      if (inputs.quads) {
        float* quads = b.quads.panel(p) + lane;
        kernels.quantize(from, width, features, 16, quads, b.scales.panel(p) + lane);
        if (inputs.byte_tiles)
          kernels.quads_to_tiles(quads, width, ceil_div(features, 4),
                                 b.byte_tiles.panel(p) + lane * (ceil_div(features, 64) * 16));
      } else if (inputs.bytes) {
        kernels.lane_scales(from, width, features, 16, b.scales.panel(p) + lane);
      }
    });
  if (!inputs.bf16 && !inputs.halves && !inputs.bytes) return;
  constexpr int64_t kRows = 64;
  const int64_t slices = ceil_div(features, kRows);
  range.for_items(range.panels() * slices, true, [&](int64_t i) {
    const int64_t p = range.first + i / slices, k = i % slices * kRows;
    const int64_t width = layout.width(p), n = std::min(kRows, features - k);
    const float* from = x.panel(p) + k * width;
    if (inputs.bf16) kernels.rows_to_bf16(from, n, width, b.bf16.panel(p) + k * width / 2);
    if (inputs.halves)
      kernels.rows_to_halves(from, n, width, powers_of(p), b.halves.panel(p) + k * width / 2);
    if (inputs.bytes)
      kernels.rows_to_bytes(from, n, width, b.scales.panel(p), b.bytes.panel(p) + k * width / 4);
  });
}

}  // namespace se
