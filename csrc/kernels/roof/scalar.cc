#define SE_TARGET scalar
#include "simd/scalar.h"
#include "kernels/roof/roof.h"
#include "kernels/roof/body.inl.h"

float se::fma_loop_scalar(int64_t rounds) { return scalar::fma_loop(rounds); }

float se::sum_loop_scalar(const float* p, int64_t count) { return scalar::sum_loop(p, count); }
