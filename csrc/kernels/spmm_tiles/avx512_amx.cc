// spmm_tiles with AMX: TDPBF16PS and TDPBSSD. Tile registers 0 to 3 hold the sums, 4 and 5 two
// groups of 16 tokens, 6 and 7 two tiles of the weight.
#define SE_TARGET avx512_amx
#include "simd/avx512.h"
#include "kernels/spmm_tiles/kernel.h"
#include "kernels/expand.inl.h"
#include "kernels/tile_registers.inl.h"
#include "kernels/spmm_tiles/body.inl.h"

namespace se {
namespace avx512_amx {

struct Bf16 {
  using Mask = uint32_t;
  using Value = uint16_t;
  using Element = uint16_t;
  static constexpr int kParts = 1;
  static constexpr int64_t kLine = 32, kTile = 512;
  static bool expand(Mask mask, const Value* values, Element* to) {
    // A load and an expansion in a register are faster than an expansion from memory.
    _mm512_store_si512(to, expand_words(mask, _mm512_loadu_si512(values)));
    return true;
  }
};

struct Int8 {
  using Mask = uint64_t;
  using Value = int8_t;
  using Element = int8_t;
  static constexpr int kParts = 1;
  static constexpr int64_t kLine = 64, kTile = 1024;
  static bool expand(Mask mask, const Value* values, Element* to) {
    _mm512_store_si512(to, expand_bytes(mask, _mm512_loadu_si512(values)));
    return true;
  }
};

// A float is split into three bf16: the nearest one with half away from zero, that of the rest, and
// what is left, which has eight bits and is exact.
struct Float {
  using Mask = uint32_t;
  using Value = float;
  using Element = uint16_t;
  static constexpr int kParts = 3;
  static constexpr int64_t kLine = 32, kTile = 512;

  static vf top(vf a) {
    const __m512i up = _mm512_add_epi32(_mm512_castps_si512(a), _mm512_set1_epi32(0x8000));
    return _mm512_castsi512_ps(
        _mm512_and_si512(up, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))));
  }
  static void store(vf a, vf b, Element* to) {  // the upper halves of 32 lanes
    const __m512i odd =
        _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                         25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    _mm512_store_si512(
        to, _mm512_permutex2var_epi16(_mm512_castps_si512(a), odd, _mm512_castps_si512(b)));
  }
  static bool expand(Mask mask, const Value* values, Element* to) {
    const __mmask16 low = static_cast<__mmask16>(mask), high = static_cast<__mmask16>(mask >> 16);
    const vf a = _mm512_maskz_expand_ps(low, load(values));
    const vf b = _mm512_maskz_expand_ps(high, load(values + __builtin_popcount(low)));
    const vf a0 = top(a), b0 = top(b);
    const vf a1 = sub(a, a0), b1 = sub(b, b0);
    const vf a2 = top(a1), b2 = top(b1);
    store(a0, b0, to);
    store(a2, b2, to + kTile);
    store(sub(a1, a2), sub(b1, b2), to + 2 * kTile);
    const vf limit = _mm512_castsi512_ps(_mm512_set1_epi32(0x7F7F8000));
    const __mmask16 large = _mm512_cmp_ps_mask(abs(a), limit, _CMP_NLT_UQ) |
                            _mm512_cmp_ps_mask(abs(b), limit, _CMP_NLT_UQ);
    return large == 0;
  }
};

// sum += x w for the tiles of `halves`: registers 0 and 1 are of the first group of tokens, 2 and 3
// of the second.
#define SE_PRODUCTS(instruction)           \
  if (kHalves & 1) instruction(0, 4, 6);   \
  if (kHalves & 2) instruction(1, 4, 7);   \
  if (kGroups == 2) {                      \
    if (kHalves & 1) instruction(2, 5, 6); \
    if (kHalves & 2) instruction(3, 5, 7); \
  }

template <class Kind, int kGroups>
struct Products {
  using Element = typename Kind::Element;
  int64_t part, group;  // elements from one part, or group of 16 tokens, to the next

  Products(const TokenTiles& x, int64_t tile_columns, bool add, const void* sums)
      : part(x.part), group(tile_columns * Kind::kTile) {
    const char* from = static_cast<const char*>(sums);
    if (add) {
      _tile_loadd(0, from, 128);
      _tile_loadd(1, from + 64, 128);
      if (kGroups == 2) {
        _tile_loadd(2, from + 2048, 128);
        _tile_loadd(3, from + 2112, 128);
      }
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
  }

  void load_tokens(const Element* x, int p) const {
    _tile_loadd(4, x + p * part, 64);
    if (kGroups == 2) _tile_loadd(5, x + p * part + group, 64);
  }
  template <int kHalves>
  void load_weight(const Element* w0, const Element* w1, int p) const {
    if (kHalves & 1) _tile_loadd(6, w0 + p * Kind::kTile, 64);
    if (kHalves & 2) _tile_loadd(7, w1 + p * Kind::kTile, 64);
  }

  template <int kHalves, class Between>
  void multiply(const Element* x, const Element* w0, const Element* w1, Between between) const {
    stores_first();
    if constexpr (Kind::kParts == 1) {
      load_tokens(x, 0);
      load_weight<kHalves>(w0, w1, 0);
      between();
      if constexpr (sizeof(Element) == 1) {
        SE_PRODUCTS(_tile_dpbssd)
      } else {
        SE_PRODUCTS(_tile_dpbf16ps)
      }
    } else {  // small products first
      load_tokens(x, 0);
      load_weight<kHalves>(w0, w1, 2);
      SE_PRODUCTS(_tile_dpbf16ps)
      load_weight<kHalves>(w0, w1, 1);
      SE_PRODUCTS(_tile_dpbf16ps)
      between();
      load_tokens(x, 1);
      SE_PRODUCTS(_tile_dpbf16ps)
      load_weight<kHalves>(w0, w1, 0);
      SE_PRODUCTS(_tile_dpbf16ps)
      load_tokens(x, 2);
      SE_PRODUCTS(_tile_dpbf16ps)
      load_tokens(x, 0);
      SE_PRODUCTS(_tile_dpbf16ps)
    }
  }

  void store(void* sums) const {
    char* to = static_cast<char*>(sums);
    _tile_stored(0, to, 128);
    _tile_stored(1, to + 64, 128);
    if (kGroups == 2) {
      _tile_stored(2, to + 2048, 128);
      _tile_stored(3, to + 2112, 128);
    }
  }
};
#undef SE_PRODUCTS

}  // namespace avx512_amx
}  // namespace se

void se::enter_tiles_avx512_amx() { avx512_amx::configure_tiles(); }
void se::leave_tiles_avx512_amx() { avx512_amx::release_tiles(); }

se::TileSpanEnd se::spmm_tiles_f32_avx512_amx(const Tiles& w, const TileSpan& span,
                                              const TokenTiles& x, bool expand, bool add,
                                              void* scratch, void* sums) {
  return avx512_amx::spmm_tiles<avx512_amx::Float, avx512_amx::Products>(w, span, x, expand, add,
                                                                         scratch, sums);
}

se::TileSpanEnd se::spmm_tiles_bf16_avx512_amx(const Tiles& w, const TileSpan& span,
                                               const TokenTiles& x, bool expand, bool add,
                                               void* scratch, void* sums) {
  return avx512_amx::spmm_tiles<avx512_amx::Bf16, avx512_amx::Products>(w, span, x, expand, add,
                                                                        scratch, sums);
}

se::TileSpanEnd se::spmm_tiles_i8_avx512_amx(const Tiles& w, const TileSpan& span,
                                             const TokenTiles& x, bool expand, bool add,
                                             void* scratch, void* sums) {
  return avx512_amx::spmm_tiles<avx512_amx::Int8, avx512_amx::Products>(w, span, x, expand, add,
                                                                        scratch, sums);
}
