#define SE_TARGET avx512
#include "simd/avx512.h"
#include "kernels/roof/roof.h"
#include "kernels/roof/body.inl.h"

float se::fma_loop_avx512(int64_t rounds) { return avx512::fma_loop(rounds); }

float se::sum_loop_avx512(const float* p, int64_t count) { return avx512::sum_loop(p, count); }
