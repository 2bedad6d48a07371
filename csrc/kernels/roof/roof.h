// The peak rates of this machine, measured: the roof that benchmarks compare with.
#pragma once

#include <cstdint>

#include "core/capabilities.h"
#include "core/types.h"

namespace se {

// Multiply-adds per second x 2, in GFLOP/s (GOP/s for int8), of all threads together, from
// registers, by the fastest instruction in `caps` that multiplies `dtype`; float32 also as six
// products of bf16 tiles.
double peak_gflops(DType dtype, Capabilities caps);

// GB/s that all threads together read from `bytes` of memory, read repeatedly.
double read_gbytes_per_second(int64_t bytes, Capabilities caps);

#define SE_ROOF(target, lanes)                                                                   \
  float fma_loop_##target(int64_t rounds);                /* 10 x rounds vector multiply-adds */ \
  float sum_loop_##target(const float* p, int64_t count); /* count: multiple of 128 */
#include "kernels/roof/kernels.inc"
#undef SE_ROOF
float i8_dot_loop_avx512_vnni(int64_t rounds);
float bf16_dot_loop_avx512_bf16(int64_t rounds);
float bf16_tile_loop_avx512_amx(int64_t rounds);
float i8_tile_loop_avx512_amx(int64_t rounds);

}  // namespace se
