#include "kernels/table.h"

#include "kernels/layer_rows/kernel.h"

namespace se {
namespace {

constexpr LayerRowKernels kTable[] = {
#define SE_LAYER_ROWS(isa) \
  {Isa::isa, norm_row_##isa, multiply_row_##isa, rotate_row_##isa, attend_row_##isa},
#include "kernels/layer_rows/kernels.inc"
#undef SE_LAYER_ROWS
};

}  // namespace

const LayerRowKernels& layer_rows(Isa isa) { return first_that_fits(kTable, isa); }

}  // namespace se
