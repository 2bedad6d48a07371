#define SE_TARGET avx2
#include "simd/avx2.h"
#include "kernels/roof/roof.h"
#include "kernels/roof/body.inl.h"

float se::fma_loop_avx2(int64_t rounds) { return avx2::fma_loop(rounds); }

float se::sum_loop_avx2(const float* p, int64_t count) { return avx2::sum_loop(p, count); }
