// spmm_tiles in plain C++: what the tile products of the other targets compute.
#define SE_TARGET scalar
#include "simd/scalar.h"
#include "kernels/spmm_tiles/kernel.h"
#include "kernels/spmm_tiles/body.inl.h"

namespace se {
namespace scalar {

inline float number(uint16_t a) { return widen(bf16{a}); }
inline int32_t number(int8_t a) { return a; }

template <class V, class M, int kPerLine>
struct Whole {
  using Mask = M;
  using Value = V;
  using Element = V;
  static constexpr int kParts = 1;
  static constexpr int64_t kLine = kPerLine, kTile = 16 * kPerLine;
  static bool expand(Mask mask, const Value* values, Element* to) {
    for (int i = 0; i < kPerLine; ++i) to[i] = mask >> i & 1 ? *values++ : Value{0};
    return true;
  }
};
using Bf16 = Whole<uint16_t, uint32_t, 32>;
using Int8 = Whole<int8_t, uint64_t, 64>;

// A float is split into three bf16: the nearest one with half away from zero, that of the rest, and
// what is left, which has eight bits and is exact.
struct Float {
  using Mask = uint32_t;
  using Value = float;
  using Element = uint16_t;
  static constexpr int kParts = 3;
  static constexpr int64_t kLine = 32, kTile = 512;
  static uint16_t top(float a) {
    uint32_t u;
    std::memcpy(&u, &a, 4);
    return static_cast<uint16_t>((u + 0x8000) >> 16);
  }
  static bool expand(Mask mask, const Value* values, Element* to) {
    bool fits = true;
    for (int i = 0; i < 32; ++i) {
      const float a = mask >> i & 1 ? *values++ : 0.0f;
      uint32_t u;
      std::memcpy(&u, &a, 4);
      fits &= (u & 0x7FFFFFFF) < 0x7F7F8000;
      to[i] = top(a);
      const float rest = a - number(to[i]);
      to[i + kTile] = top(rest);
      to[i + 2 * kTile] = top(rest - number(to[i + kTile]));
    }
    return fits;
  }
};

template <class Kind, int kGroups>
struct Products {
  using Element = typename Kind::Element;
  using Sum = decltype(number(Element{}));
  static constexpr int kTogether = Kind::kLine / 16;
  int64_t part, group;
  Sum sums[kGroups * 16][32] = {};

  Products(const TokenTiles& x, int64_t tile_columns, bool add, const void* from)
      : part(x.part), group(tile_columns * Kind::kTile) {
    if (add) std::memcpy(sums, from, sizeof sums);
  }

  void multiply_tile(const Element* x, const Element* w, int r0) {
    for (int t = 0; t < kGroups * 16; ++t)
      for (int r = 0; r < 16; ++r) {
        const Element* xt = x + t / 16 * group + t % 16 * Kind::kLine;
        Sum sum = 0;
        for (int k = 0; k < Kind::kLine; ++k)
          sum += number(xt[k]) *
                 number(w[k / kTogether * Kind::kLine + r * kTogether + k % kTogether]);
        sums[t][r0 + r] += sum;
      }
  }

  template <int kHalves, class Between>
  void multiply(const Element* x, const Element* w0, const Element* w1, Between between) {
    constexpr int kPairs[6][2] = {{0, 2}, {0, 1}, {1, 1}, {1, 0}, {2, 0}, {0, 0}};
    between();
    for (int i = Kind::kParts == 1 ? 5 : 0; i < 6; ++i) {
      const int64_t p = kPairs[i][0] * part, q = kPairs[i][1] * Kind::kTile;
      if (kHalves & 1) multiply_tile(x + p, w0 + q, 0);
      if (kHalves & 2) multiply_tile(x + p, w1 + q, 16);
    }
  }

  void store(void* to) const { std::memcpy(to, sums, sizeof sums); }
};

}  // namespace scalar
}  // namespace se

void se::enter_tiles_scalar() {}
void se::leave_tiles_scalar() {}

se::TileSpanEnd se::spmm_tiles_f32_scalar(const Tiles& w, const TileSpan& span, const TokenTiles& x,
                                          bool expand, bool add, void* scratch, void* sums) {
  return scalar::spmm_tiles<scalar::Float, scalar::Products>(w, span, x, expand, add, scratch,
                                                             sums);
}

se::TileSpanEnd se::spmm_tiles_bf16_scalar(const Tiles& w, const TileSpan& span,
                                           const TokenTiles& x, bool expand, bool add,
                                           void* scratch, void* sums) {
  return scalar::spmm_tiles<scalar::Bf16, scalar::Products>(w, span, x, expand, add, scratch, sums);
}

se::TileSpanEnd se::spmm_tiles_i8_scalar(const Tiles& w, const TileSpan& span, const TokenTiles& x,
                                         bool expand, bool add, void* scratch, void* sums) {
  return scalar::spmm_tiles<scalar::Int8, scalar::Products>(w, span, x, expand, add, scratch, sums);
}
