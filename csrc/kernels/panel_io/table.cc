#include "kernels/table.h"

#include "kernels/panel_io/kernel.h"

namespace se {
namespace {

constexpr PanelIoKernels kTable[] = {
#define SE_PANEL_IO(target)                                                                       \
  {targets::target,         pack_panel_##target,  quantize_panel_##target, token_scales_##target, \
   pack_bytes_##target,     store_panel_##target, store_token_##target,    pack_tiles_##target,   \
   quantize_tiles_##target, store_tiles_##target},
#include "kernels/panel_io/kernels.inc"
#undef SE_PANEL_IO
};

}  // namespace

const PanelIoKernels& panel_io(Capabilities caps) { return best_row(kTable, caps); }

}  // namespace se
