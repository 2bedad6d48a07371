#include "kernels/table.h"

#include "kernels/panels/kernel.h"

namespace se {
namespace {

constexpr PanelKernels kTable[] = {
#define SE_PANELS(isa) \
  {Isa::isa, pack_panel_##isa, quantize_panel_##isa, store_panel_##isa, store_token_##isa},
#include "kernels/panels/kernels.inc"
#undef SE_PANELS
};

}  // namespace

const PanelKernels& panels(Isa isa) { return first_that_fits(kTable, isa); }

}  // namespace se
