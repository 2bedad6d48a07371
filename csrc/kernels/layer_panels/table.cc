#include "kernels/table.h"

#include "kernels/layer_panels/kernel.h"

namespace se {
namespace {

constexpr decltype(LayerPanelKernels::lane_powers) lane_powers_avx2 = nullptr,
                                                   lane_powers_scalar = nullptr;
constexpr decltype(LayerPanelKernels::rows_to_halves) rows_to_halves_avx2 = nullptr,
                                                      rows_to_halves_scalar = nullptr;

// Only attention uses tiles: the rest of that row is for AVX-512.
#define SE_ROW(target, own, bf16_attention)                                                \
  {targets::target,      finish_panel_##own,   norm_panel_##own,     rotate_panel_##own,   \
   quantize_lanes_##own, lane_scales_##own,    rows_to_bf16_##own,   rows_to_bytes_##own,  \
   lane_powers_##own,    rows_to_halves_##own, lanes_to_tiles_##own, quads_to_tiles_##own, \
   tiles_to_lanes_##own, attend_##own,         bf16_attention},

constexpr LayerPanelKernels kTable[] = {
#if SE_X86
    SE_ROW(avx512_amx, avx512, attend_bf16_avx512_amx)
#endif
#define SE_LAYER_PANELS(target) SE_ROW(target, target, attend_##target)
#include "kernels/layer_panels/kernels.inc"
#undef SE_LAYER_PANELS
};
#undef SE_ROW

}  // namespace

const LayerPanelKernels& layer_panels(Capabilities caps) { return best_row(kTable, caps); }

}  // namespace se
