#define SE_ISA scalar
#include "simd/scalar.h"
#include "kernels/cells/kernel.h"
#include "kernels/panels/activation.inl.h"
#include "kernels/cells/body.inl.h"

void se::step_cells_scalar(const CellStep& step) { scalar::step_cells(step); }
