#include "kernels/table.h"

#include "kernels/recurrent_cell/kernel.h"

namespace se {
namespace {

constexpr RecurrentCellKernels kTable[] = {
#define SE_RECURRENT_CELL(target) {targets::target, step_cells_##target},
#include "kernels/recurrent_cell/kernels.inc"
#undef SE_RECURRENT_CELL
};

}  // namespace

const RecurrentCellKernels& recurrent_cell(Capabilities caps) { return best_row(kTable, caps); }

}  // namespace se
