#include "kernels/table.h"

#include "kernels/panel_io/kernel.h"

namespace se {
namespace {

constexpr decltype(PanelIoKernels::token_powers) token_powers_avx2 = nullptr,
                                                 token_powers_scalar = nullptr;
constexpr decltype(PanelIoKernels::pack_halves) pack_halves_avx2 = nullptr,
                                                pack_halves_scalar = nullptr;

constexpr PanelIoKernels kTable[] = {
#define SE_PANEL_IO(target)                                                                     \
  {targets::target,      pack_panel_##target,   quantize_panel_##target, token_scales_##target, \
   pack_bytes_##target,  token_powers_##target, pack_halves_##target,    store_panel_##target,  \
   store_token_##target, pack_tiles_##target,   quantize_tiles_##target, store_tiles_##target},
#include "kernels/panel_io/kernels.inc"
#undef SE_PANEL_IO
};

}  // namespace

const PanelIoKernels& panel_io(Capabilities caps) { return best_row(kTable, caps); }

}  // namespace se
