// linear: y = act(x W^T + bias) + residual for a packed W and any number of tokens.
#pragma once

#include "kernels/panels/kernel.h"
#include "layouts/runs.h"
#include "layouts/strips.h"

namespace se {

// x [tokens][stride] row-major, float or bf16; the epilogue says where y goes. y must not overlap
// x. Runs on omp_get_max_threads() threads (torch.set_num_threads governs it: both share one
// OpenMP). The result does not depend on the number of threads: one thread computes each output, in
// one order.
void linear(const Strips& w, const void* x, DType x_dtype, int64_t stride, int64_t tokens,
            const Epilogue& epilogue, Isa isa);

// The same for runs; `features` of x are W's columns, four times w.in at most for int8.
void linear(const Runs& w, const void* x, DType x_dtype, int64_t stride, int64_t tokens,
            int64_t features, const Epilogue& epilogue, Isa isa);

}  // namespace se
