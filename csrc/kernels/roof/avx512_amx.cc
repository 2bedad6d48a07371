#define SE_TARGET avx512_amx
#include "simd/avx512.h"
#include "kernels/roof/roof.h"
#include "kernels/tile_registers.inl.h"

// Four tile products a round, each of 16 x 16 sums and 64 bytes a line: 16384 FLOP of bf16, 32768
// OP of int8.
float se::bf16_tile_loop_avx512_amx(int64_t rounds) {
  avx512_amx::configure_tiles();
  for (int64_t r = 0; r < rounds; ++r) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  avx512_amx::release_tiles();
  return 0;
}

float se::i8_tile_loop_avx512_amx(int64_t rounds) {
  avx512_amx::configure_tiles();
  for (int64_t r = 0; r < rounds; ++r) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  avx512_amx::release_tiles();
  return 0;
}
