#define SE_TARGET scalar
#include "simd/scalar.h"
#include "kernels/recurrent_cell/kernel.h"
#include "kernels/panel_io/activation.inl.h"
#include "kernels/recurrent_cell/body.inl.h"

void se::step_cells_scalar(const CellStep& step) { scalar::step_cells(step); }
