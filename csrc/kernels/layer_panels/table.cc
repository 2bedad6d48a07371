#include "kernels/table.h"

#include "kernels/layer_panels/kernel.h"

namespace se {
namespace {

constexpr decltype(LayerPanelKernels::lane_powers) lane_powers_avx2 = nullptr,
                                                   lane_powers_scalar = nullptr;
constexpr decltype(LayerPanelKernels::rows_to_halves) rows_to_halves_avx2 = nullptr,
                                                      rows_to_halves_scalar = nullptr;

constexpr LayerPanelKernels kTable[] = {
#define SE_LAYER_PANELS(target)                                               \
  {targets::target,         finish_panel_##target,   norm_panel_##target,     \
   rotate_panel_##target,   quantize_lanes_##target, lane_scales_##target,    \
   rows_to_bf16_##target,   rows_to_bytes_##target,  lane_powers_##target,    \
   rows_to_halves_##target, lanes_to_tiles_##target, quads_to_tiles_##target, \
   tiles_to_lanes_##target, attend_##target},
#include "kernels/layer_panels/kernels.inc"
#undef SE_LAYER_PANELS
};

}  // namespace

const LayerPanelKernels& layer_panels(Capabilities caps) { return best_row(kTable, caps); }

}  // namespace se
