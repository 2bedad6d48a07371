#define SE_ISA avx512
#include "simd/avx512.h"
#include "kernels/cells/kernel.h"
#include "kernels/panels/activation.inl.h"
#include "kernels/cells/body.inl.h"

void se::step_cells_avx512(const CellStep& step) { avx512::step_cells(step); }
