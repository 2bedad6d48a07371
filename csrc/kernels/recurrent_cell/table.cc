#include "kernels/table.h"

#include "kernels/recurrent_cell/kernel.h"

namespace se {
namespace {

constexpr RecurrentCellKernels kTable[] = {
#define SE_RECURRENT_CELL(isa) {Isa::isa, step_cells_##isa},
#include "kernels/recurrent_cell/kernels.inc"
#undef SE_RECURRENT_CELL
};

}  // namespace

const RecurrentCellKernels& recurrent_cell(Isa isa) { return first_that_fits(kTable, isa); }

}  // namespace se
