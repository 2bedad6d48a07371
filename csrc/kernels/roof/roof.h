// What this machine can do at most, measured: the roof that benchmarks compare with.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace se {

// The level in use: what SPARSE_ENGINE_ISA forces, else the highest one; but not avx512_bf16 where
// its products are so slow that widening to float pays (Sapphire and Emerald Rapids: a quarter of
// the rate that Zen 4 has per cycle). Measured once, in microseconds.
Isa active_isa();

// Multiply-adds per second x 2, in GFLOP/s (GOP/s for int8), of all threads together, from
// registers, in the fastest way that there is to multiply `dtype`.
double peak_gflops(DType dtype, Isa isa);

// GB/s that all threads together read from `bytes` of memory, read over and over.
double read_gbytes_per_second(int64_t bytes, Isa isa);

#define SE_ROOF(isa)                                                                          \
  float fma_loop_##isa(int64_t rounds);                /* 10 x rounds vector multiply-adds */ \
  float sum_loop_##isa(const float* p, int64_t count); /* count: multiple of 128 */
#include "kernels/roof/kernels.inc"
#undef SE_ROOF
float i8_dot_loop_avx512_vnni(int64_t rounds);
float bf16_dot_loop_avx512_bf16(int64_t rounds);

}  // namespace se
