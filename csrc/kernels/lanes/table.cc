#include "kernels/table.h"

#include "kernels/lanes/kernel.h"

namespace se {
namespace {

constexpr LaneKernels kTable[] = {
#define SE_LANES(isa)                                          \
  {Isa::isa,           finish_panel_##isa,   norm_panel_##isa, \
   rotate_panel_##isa, quantize_lanes_##isa, attend_##isa},
#include "kernels/lanes/kernels.inc"
#undef SE_LANES
};

}  // namespace

const LaneKernels& lanes(Isa isa) { return first_that_fits(kTable, isa); }

}  // namespace se
