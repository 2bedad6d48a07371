#include "kernels/table.h"

#include "kernels/rows/kernel.h"

namespace se {
namespace {

constexpr RowKernels kTable[] = {
#define SE_ROWS(isa) \
  {Isa::isa, norm_row_##isa, multiply_row_##isa, rotate_row_##isa, attend_row_##isa},
#include "kernels/rows/kernels.inc"
#undef SE_ROWS
};

}  // namespace

const RowKernels& rows(Isa isa) { return first_that_fits(kTable, isa); }

}  // namespace se
