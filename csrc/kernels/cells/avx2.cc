#define SE_ISA avx2
#include "simd/avx2.h"
#include "kernels/cells/kernel.h"
#include "kernels/panels/activation.inl.h"
#include "kernels/cells/body.inl.h"

void se::step_cells_avx2(const CellStep& step) { avx2::step_cells(step); }
