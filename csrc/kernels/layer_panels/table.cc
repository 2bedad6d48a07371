#include "kernels/table.h"

#include "kernels/layer_panels/kernel.h"

namespace se {
namespace {

constexpr LayerPanelKernels kTable[] = {
#define SE_LAYER_PANELS(isa)                                   \
  {Isa::isa,           finish_panel_##isa,   norm_panel_##isa, \
   rotate_panel_##isa, quantize_lanes_##isa, attend_##isa},
#include "kernels/layer_panels/kernels.inc"
#undef SE_LAYER_PANELS
};

}  // namespace

const LayerPanelKernels& layer_panels(Isa isa) { return first_that_fits(kTable, isa); }

}  // namespace se
