#include "kernels/table.h"

#include "kernels/panel_io/kernel.h"

namespace se {
namespace {

constexpr PanelIoKernels kTable[] = {
#define SE_PANEL_IO(isa) \
  {Isa::isa, pack_panel_##isa, quantize_panel_##isa, store_panel_##isa, store_token_##isa},
#include "kernels/panel_io/kernels.inc"
#undef SE_PANEL_IO
};

}  // namespace

const PanelIoKernels& panel_io(Isa isa) { return first_that_fits(kTable, isa); }

}  // namespace se
