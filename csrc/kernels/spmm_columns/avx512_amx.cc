// spmm_columns with TDPBF16PS. The columns of a step are gathered from the panel and interleaved in
// pairs, the order of a tile product's second operand: with the token order of bf16 panels
// (kernels/panel_io/kernel.h), unpacklo yields the first and unpackhi the last 16 of 32 tokens.
// Columns are gathered one step ahead of the products, which use other units of the processor.
#define SE_TARGET avx512_amx
#include "simd/avx512.h"
#include "kernels/spmm_columns/kernel.h"
#include "kernels/tile_registers.inl.h"

namespace se {
namespace avx512_amx {

// One step of V x 32 tokens: 2 V tiles.
template <int T, int V>
inline void gather(const uint16_t* columns, const uint16_t* x, uint16_t* to) {
  SE_UNROLL
  for (int j = 0; j < 16; ++j) {
    const uint16_t *a = x + columns[2 * j] * int64_t{T}, *b = x + columns[2 * j + 1] * int64_t{T};
    SE_UNROLL
    for (int v = 0; v < V; ++v) {
      const __m512i first = _mm512_load_si512(a + v * 32), second = _mm512_load_si512(b + v * 32);
      _mm512_store_si512(to + 2 * v * 512 + j * 32, _mm512_unpacklo_epi16(first, second));
      _mm512_store_si512(to + (2 * v + 1) * 512 + j * 32, _mm512_unpackhi_epi16(first, second));
    }
  }
}

// Sums of 16 rows x 64 tokens, or of 32 rows x 32 tokens, stay in registers 0 to 3.
template <int T, int G, int V>
inline void band(const Columns& w, int64_t b, const uint16_t* x, float* y) {
  static_assert(G * V <= 2, "four tiles of sums");
  alignas(64) uint16_t gathered[2][2 * V * 512];
  const int64_t first = w.pointers[b], last = w.pointers[b + 1];
  const uint16_t* tile = static_cast<const uint16_t*>(w.values) + first * G * 512;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  if (first < last) gather<T, V>(w.columns + first * Columns::kStep, x, gathered[first % 2]);
  for (int64_t s = first; s < last; ++s, tile += G * 512) {
    if (s + 1 < last) gather<T, V>(w.columns + (s + 1) * Columns::kStep, x, gathered[(s + 1) % 2]);
    stores_first();
    const uint16_t* columns = gathered[s % 2];
    _tile_loadd(4, tile, 64);
    if (G == 2) _tile_loadd(5, tile + 512, 64);
    _tile_loadd(6, columns, 64);
    _tile_loadd(7, columns + 512, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (G == 2) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    if (V == 2) {
      _tile_loadd(6, columns + 1024, 64);
      _tile_loadd(7, columns + 1536, 64);
      _tile_dpbf16ps(2, 4, 6);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  _tile_stored(0, y, T * 4);
  _tile_stored(1, y + 16, T * 4);
  if (G == 2) {
    _tile_stored(2, y + 16 * T, T * 4);
    _tile_stored(3, y + 16 * T + 16, T * 4);
  }
  if (V == 2) {
    _tile_stored(2, y + 32, T * 4);
    _tile_stored(3, y + 48, T * 4);
  }
}

template <int T>
inline void bands(const Columns& w, int64_t begin, int64_t end, const uint16_t* x, float* y) {
  for (int64_t b = begin; b < end; ++b, y += w.height * T) {
    if (w.height == 16) {
      band<T, 1, T / 32>(w, b, x, y);
      continue;
    }
    for (int t = 0; t < T; t += 32) band<T, 2, 1>(w, b, x + t, y + t);
  }
}

}  // namespace avx512_amx
}  // namespace se

void se::spmm_columns_bf16_avx512_amx(const Columns& w, int64_t begin, int64_t end, const void* x,
                                      int64_t tokens, float* y) {
  const uint16_t* panel = static_cast<const uint16_t*>(x);
  avx512_amx::configure_tiles();
  if (tokens == 64)
    avx512_amx::bands<64>(w, begin, end, panel, y);
  else
    avx512_amx::bands<32>(w, begin, end, panel, y);
  avx512_amx::release_tiles();
}
