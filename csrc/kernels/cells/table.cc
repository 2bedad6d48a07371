#include "kernels/table.h"

#include "kernels/cells/kernel.h"

namespace se {
namespace {

constexpr CellKernels kTable[] = {
#define SE_CELLS(isa) {Isa::isa, step_cells_##isa},
#include "kernels/cells/kernels.inc"
#undef SE_CELLS
};

}  // namespace

const CellKernels& cells(Isa isa) { return first_that_fits(kTable, isa); }

}  // namespace se
