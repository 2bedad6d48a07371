#define SE_TARGET avx512
#include "simd/avx512.h"
#include "kernels/recurrent_cell/kernel.h"
#include "kernels/panel_io/activation.inl.h"
#include "kernels/recurrent_cell/body.inl.h"

void se::step_cells_avx512(const CellStep& step) { avx512::step_cells(step); }
