// What the weights of native layers read in place of panels of floats.
#pragma once

#include "kernels/spmm_tiles/kernel.h"
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

}  // namespace se
