#include "kernels/table.h"

#include "kernels/layer_panels/kernel.h"

namespace se {
namespace {

constexpr LayerPanelKernels kTable[] = {
#define SE_LAYER_PANELS(target)                                               \
  {targets::target,         finish_panel_##target,   norm_panel_##target,     \
   rotate_panel_##target,   quantize_lanes_##target, lane_scales_##target,    \
   rows_to_bf16_##target,   rows_to_bytes_##target,  lanes_to_tiles_##target, \
   quads_to_tiles_##target, tiles_to_lanes_##target, attend_##target},
#include "kernels/layer_panels/kernels.inc"
#undef SE_LAYER_PANELS
};

}  // namespace

const LayerPanelKernels& layer_panels(Capabilities caps) { return best_row(kTable, caps); }

}  // namespace se
