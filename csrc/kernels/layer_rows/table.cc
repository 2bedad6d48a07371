#include "kernels/table.h"

#include "kernels/layer_rows/kernel.h"

namespace se {
namespace {

constexpr LayerRowKernels kTable[] = {
#define SE_LAYER_ROWS(target)                                                      \
  {targets::target, norm_row_##target, multiply_row_##target, rotate_row_##target, \
   attend_row_##target},
#include "kernels/layer_rows/kernels.inc"
#undef SE_LAYER_ROWS
};

}  // namespace

const LayerRowKernels& layer_rows(Capabilities caps) { return best_row(kTable, caps); }

}  // namespace se
