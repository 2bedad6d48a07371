// Attention with TDPBF16PS. Queries stay in the lanes: keys and values are the first operand of the
// products, queries and probabilities the second. Only keys are transposed.
#define SE_TARGET avx512_amx
#include "simd/avx512.h"
#include "kernels/layer_panels/kernel.h"
#include "kernels/panel_io/activation.inl.h"
#include "kernels/tile_registers.inl.h"
#include "kernels/widen.inl.h"
#include "kernels/layer_panels/attend.inl.h"

namespace se {
namespace avx512_amx {

constexpr int64_t kTile = 512;  // bf16

// A line of a second operand: 16 lanes of two rows, as pairs.
inline void store_pairs(uint16_t* line, vf first, vf second) {
  const __m512i low = round_to_bf16(first), high = _mm512_slli_epi32(round_to_bf16(second), 16);
  _mm512_store_si512(line, _mm512_or_si512(low, high));
}

// sums (+)= a b for 16 R rows of `a` and 16 C lanes, over `depth` tiles.
//   a     [R][depth] tiles    b  [depth][lanes / 16] tiles
//   sums  [16 R][lanes]
template <int R, int C>
inline void multiply(const uint16_t* a, const uint16_t* b, int64_t depth, int64_t lanes, bool add,
                     float* sums) {
  static_assert(R <= 2 && C <= 2, "four tiles of sums");
  const int64_t stride = lanes * 4, b_step = lanes / 16 * kTile;
  float* below = sums + 16 * lanes;
  if (add) {
    _tile_loadd(0, sums, stride);
    if (C == 2) _tile_loadd(1, sums + 16, stride);
    if (R == 2) _tile_loadd(2, below, stride);
    if (R == 2 && C == 2) _tile_loadd(3, below + 16, stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < depth; ++k) {
    _tile_loadd(4, a + k * kTile, 64);
    if (R == 2) _tile_loadd(5, a + (depth + k) * kTile, 64);
    _tile_loadd(6, b + k * b_step, 64);
    if (C == 2) _tile_loadd(7, b + k * b_step + kTile, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (C == 2) _tile_dpbf16ps(1, 4, 7);
    if (R == 2) _tile_dpbf16ps(2, 5, 6);
    if (R == 2 && C == 2) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, stride);
  if (C == 2) _tile_stored(1, sums + 16, stride);
  if (R == 2) _tile_stored(2, below, stride);
  if (R == 2 && C == 2) _tile_stored(3, below + 16, stride);
}

// Of all rows: `tiles` groups of 16.
template <int V>
inline void multiply_all(const uint16_t* a, int64_t tiles, const uint16_t* b, int64_t depth,
                         bool add, float* sums) {
  constexpr int C = V > 1 ? 2 : 1;
  constexpr int64_t T = V * kLanes;
  stores_first();
  for (int64_t r = 0; r < tiles; r += 2)
    for (int c = 0; c < V; c += C) {
      const uint16_t *rows = a + r * depth * kTile, *lanes = b + c * kTile;
      float* to = sums + r * 16 * T + c * 16;
      if (r + 1 < tiles)
        multiply<2, C>(rows, lanes, depth, T, add, to);
      else
        multiply<1, C>(rows, lanes, depth, T, add, to);
    }
}

template <int V>
struct TileProducts {
  static constexpr int64_t T = V * kLanes;
  float *s, *sums;  // [64][T], [head rounded up to 16][T]
  uint16_t *q, *k, *v, *p;
  float* wide;
  int64_t head, depth, features;  // depth: of queries, in tiles; features: tiles of values

  explicit TileProducts(const Attention& a)
      : head(a.head), depth((head + 31) / 32), features((head + 15) / 16) {
    s = a.scratch;
    sums = s + kKeys * kQueries;
    q = reinterpret_cast<uint16_t*>(sums + features * 16 * kQueries);
    k = q + depth * 4 * kTile;
    v = k + depth * 4 * kTile;
    p = v + features * 2 * kTile;
    wide = reinterpret_cast<float*>(p + 2 * 4 * kTile);
  }

  void take(const Attention& a) {
    const auto row = [&](int64_t d, int c) {
      return d < head ? mul(load(a.q + d * a.stride + c * kLanes), set1(a.scale)) : zero();
    };
    for (int64_t d = 0; d < depth * 32; d += 2)
      for (int c = 0; c < V; ++c)
        store_pairs(q + (d / 32 * V + c) * kTile + d % 32 * 16, row(d, c), row(d + 1, c));
    fresh_ = true;
  }

  KeySpan floats(const KeySpan& span) {
    return span.dtype == DType::f32 ? span : widened(span, head, wide);
  }

  // Lanes past `keys` may hold anything: their scores are not read.
  void scores(const KeySpan& span, int64_t j0, int64_t keys) {
    const float* from = static_cast<const float*>(span.k) + j0;
    const int64_t tiles = (keys + 15) / 16;
    for (int64_t j = 0; j < tiles; ++j)
      for (int64_t d = 0; d < depth * 32; d += 16) {
        vf square[kLanes];
        SE_UNROLL
        for (int i = 0; i < kLanes; ++i)
          square[i] = d + i < head ? load(from + (d + i) * span.k_feature + j * 16) : zero();
        transpose(square);
        uint16_t* to = k + (j * depth + d / 32) * kTile + d % 32;
        SE_UNROLL
        for (int i = 0; i < kLanes; ++i) store(reinterpret_cast<bf16*>(to + i * 32), square[i]);
      }
    multiply_all<V>(k, tiles, q, depth, false, s);
  }

  void values(const KeySpan& span, int64_t j0, int64_t keys, const vf (&factor)[V]) {
    const float* from = static_cast<const float*>(span.v) + j0 * span.v_position;
    const int64_t chunks = (keys + 31) / 32;
    for (int64_t d = 0; d < features * 16; d += 16)
      for (int64_t j = 0; j < chunks * 32; j += 16) {
        uint16_t* to = v + (d / 16 * chunks + j / 32) * kTile + j % 32;
        vf square[kLanes];
        read_values(span, from, d, j, keys - j, square);
        SE_UNROLL
        for (int i = 0; i < kLanes; ++i) store(reinterpret_cast<bf16*>(to + i * 32), square[i]);
      }
    const auto row = [&](int64_t j, int c) {
      return j < keys ? load(s + j * T + c * kLanes) : zero();
    };
    for (int64_t j = 0; j < chunks * 32; j += 2)
      for (int c = 0; c < V; ++c)
        store_pairs(p + (j / 32 * V + c) * kTile + j % 32 * 16, row(j, c), row(j + 1, c));
    if (!fresh_)
      for (int64_t d = 0; d < head; ++d) SE_UNROLL
    for (int c = 0; c < V; ++c) {
      float* sum = sums + d * T + c * kLanes;
      store(sum, mul(load(sum), factor[c]));
    }
    multiply_all<V>(v, features, p, chunks, !fresh_, sums);
    fresh_ = false;
  }

 private:
  // square[i] = feature d + i of keys j to j + 15, of which `keys` exist; zeros elsewhere.
  void read_values(const KeySpan& span, const float* from, int64_t d, int64_t j, int64_t keys,
                   vf (&square)[kLanes]) const {
    const __mmask16 some = keys >= 16 ? 0xFFFF : keys > 0 ? (1 << keys) - 1 : 0;
    const bool by_position = span.v_feature == 1;
    SE_UNROLL
    for (int i = 0; i < kLanes; ++i) {
      if (by_position)
        square[i] = some >> i & 1 ? load(from + (j + i) * span.v_position + d) : zero();
      else
        square[i] = d + i < head ? _mm512_maskz_loadu_ps(some, from + (d + i) * span.v_feature + j)
                                 : zero();
    }
    if (by_position) transpose(square);
  }

  bool fresh_ = true;
};

}  // namespace avx512_amx
}  // namespace se

void se::attend_bf16_avx512_amx(const Attention& attention) {
  const avx512_amx::ConfiguredTiles configured;
  avx512_amx::attend<avx512_amx::TileProducts>(attention);
}
