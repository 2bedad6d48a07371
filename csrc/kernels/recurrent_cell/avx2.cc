#define SE_TARGET avx2
#include "simd/avx2.h"
#include "kernels/recurrent_cell/kernel.h"
#include "kernels/panel_io/activation.inl.h"
#include "kernels/recurrent_cell/body.inl.h"

void se::step_cells_avx2(const CellStep& step) { avx2::step_cells(step); }
