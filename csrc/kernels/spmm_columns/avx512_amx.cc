// spmm_columns with TDPBF16PS and TDPBSSD. The columns of a step are gathered from the panel and
// interleaved in pairs or quads, the order of a tile product's second operand. The token order of
// wide panels (kernels/panel_io/kernel.h) makes unpacklo yield the first and unpackhi the last 16
// of 32 tokens. Columns are gathered one step ahead of the products, which use other units of the
// processor.
#define SE_TARGET avx512_amx
#include "simd/avx512.h"
#include "kernels/spmm_columns/kernel.h"
#include "kernels/tile_registers.inl.h"

namespace se {
namespace avx512_amx {

constexpr int64_t kTileBytes = 1024, kLineBytes = 64;

inline __m256i half(const void* p) { return _mm256_load_si256(static_cast<const __m256i*>(p)); }
inline __m512i halves(const void* low, const void* high) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(half(low)), half(high), 1);
}
// The words of the two halves in turn.
inline __m512i interleave(__m512i a) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, a);
}

// Kind::gather writes one line of each of V tiles, one pair or quad of columns of 16 V tokens:
//   columns  the kTogether columns of the line
//   x        panel [in][T]
struct Bf16 {
  static constexpr int64_t kTogether = 2, kBytes = 2;
  template <int T, int V>
  static void gather(const uint16_t* columns, const char* x, char* to) {
    const char* a = x + columns[0] * int64_t{2 * T};
    const char* b = x + columns[1] * int64_t{2 * T};
    if constexpr (V == 1) {
      _mm512_store_si512(to, interleave(halves(a, b)));
    } else {
      SE_UNROLL
      for (int v = 0; v < V; v += 2, a += 64, b += 64, to += 2 * kTileBytes) {
        const __m512i first = _mm512_load_si512(a), second = _mm512_load_si512(b);
        _mm512_store_si512(to, _mm512_unpacklo_epi16(first, second));
        _mm512_store_si512(to + kTileBytes, _mm512_unpackhi_epi16(first, second));
      }
    }
  }
};

struct Int8 {
  static constexpr int64_t kTogether = 4, kBytes = 1;
  template <int T, int V>
  static void gather(const uint16_t* columns, const char* x, char* to) {
    const char* c[4];
    SE_UNROLL
    for (int i = 0; i < 4; ++i) c[i] = x + columns[i] * int64_t{T};
    if constexpr (V == 1) {
      const auto pair = [](const char* low, const char* high) {
        return _mm256_inserti128_si256(
            _mm256_castsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(low))),
            _mm_load_si128(reinterpret_cast<const __m128i*>(high)), 1);
      };
      const __m256i even = pair(c[0], c[2]), odd = pair(c[1], c[3]);
      const __m256i low = _mm256_unpacklo_epi8(even, odd), high = _mm256_unpackhi_epi8(even, odd);
      _mm512_store_si512(to, interleave(_mm512_inserti64x4(
                                 _mm512_castsi256_si512(_mm256_permute2x128_si256(low, high, 0x20)),
                                 _mm256_permute2x128_si256(low, high, 0x31), 1)));
    } else {
      SE_UNROLL
      for (int v = 0; v < V; v += 2, to += 2 * kTileBytes) {
        const __m512i even = halves(c[0] + v * 16, c[2] + v * 16);
        const __m512i odd = halves(c[1] + v * 16, c[3] + v * 16);
        _mm512_store_si512(to, interleave(_mm512_unpacklo_epi8(even, odd)));
        _mm512_store_si512(to + kTileBytes, interleave(_mm512_unpackhi_epi8(even, odd)));
      }
    }
  }
};

#define SE_PRODUCT(sum, a, b)      \
  if constexpr (Kind::kBytes == 1) \
    _tile_dpbssd(sum, a, b);       \
  else                             \
    _tile_dpbf16ps(sum, a, b);

// Sums of 16 G rows x 16 V tokens stay in registers 0 to 3: 2 v + g for rows 16 g and tokens 16 v
// of at most two, and v for one group of rows. x and sums are those of a panel of T tokens.
template <class Kind, int T, int G, int V>
inline void band(const Columns& w, int64_t b, const char* x, char* sums) {
  static_assert(G * V <= 4, "four tiles of sums");
  constexpr int64_t kStep = 16 * Kind::kTogether, kSum = 4;
  alignas(64) char gathered[2][V * kTileBytes];
  const int64_t first = w.pointers[b], last = w.pointers[b + 1];
  const char* tile = static_cast<const char*>(w.values) + first * G * kTileBytes;
  const auto gather = [&](int64_t s) {
    SE_UNROLL
    for (int j = 0; j < 16; ++j)
      Kind::template gather<T, V>(w.columns + s * kStep + j * Kind::kTogether, x,
                                  gathered[s % 2] + j * kLineBytes);
  };
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  if (first < last) gather(first);
  for (int64_t s = first; s < last; ++s, tile += G * kTileBytes) {
    if (s + 1 < last) gather(s + 1);
    stores_first();
    const char* columns = gathered[s % 2];
    _tile_loadd(4, tile, kLineBytes);
    if (G == 2) _tile_loadd(5, tile + kTileBytes, kLineBytes);
    _tile_loadd(6, columns, kLineBytes);
    SE_PRODUCT(0, 4, 6)
    if (G == 2) {
      SE_PRODUCT(1, 5, 6)
    }
    if (V > 1) {
      _tile_loadd(7, columns + kTileBytes, kLineBytes);
      if (G == 2) {
        SE_PRODUCT(2, 4, 7)
        SE_PRODUCT(3, 5, 7)
      } else {
        SE_PRODUCT(1, 4, 7)
      }
    }
    if (V > 2) {
      _tile_loadd(6, columns + 2 * kTileBytes, kLineBytes);
      _tile_loadd(7, columns + 3 * kTileBytes, kLineBytes);
      SE_PRODUCT(2, 4, 6)
      SE_PRODUCT(3, 4, 7)
    }
    stores_first();  // the next gather overwrites what was loaded
  }
  constexpr int64_t kRow = T * kSum, kRows = 16 * kRow;
  _tile_stored(0, sums, kRow);
  if (G == 2) {
    _tile_stored(1, sums + kRows, kRow);
    if (V > 1) {
      _tile_stored(2, sums + 64, kRow);
      _tile_stored(3, sums + kRows + 64, kRow);
    }
  } else {
    if (V > 1) _tile_stored(1, sums + 64, kRow);
    if (V > 2) {
      _tile_stored(2, sums + 128, kRow);
      _tile_stored(3, sums + 192, kRow);
    }
  }
}
#undef SE_PRODUCT

template <class Kind, int T>
inline void bands(const Columns& w, int64_t begin, int64_t end, const char* x, char* sums) {
  constexpr int kWide = T < 32 ? 16 : 32;  // tokens at a time of a band of 32 rows
  for (int64_t b = begin; b < end; ++b, sums += w.height * T * 4) {
    if (w.height == 16) {
      band<Kind, T, 1, T / 16>(w, b, x, sums);
      continue;
    }
    for (int t = 0; t < T; t += kWide)
      band<Kind, T, 2, kWide / 16>(w, b, x + t * Kind::kBytes, sums + t * 4);
  }
}

template <class Kind>
inline void spmm_columns(const Columns& w, int64_t begin, int64_t end, const void* x,
                         int64_t tokens, void* sums) {
  const char* panel = static_cast<const char*>(x);
  char* to = static_cast<char*>(sums);
  const ConfiguredTiles configured;
  if (tokens == 64)
    bands<Kind, 64>(w, begin, end, panel, to);
  else if (tokens == 32)
    bands<Kind, 32>(w, begin, end, panel, to);
  else
    bands<Kind, 16>(w, begin, end, panel, to);
}

}  // namespace avx512_amx
}  // namespace se

void se::spmm_columns_bf16_avx512_amx(const Columns& w, int64_t begin, int64_t end, const void* x,
                                      int64_t tokens, void* sums) {
  avx512_amx::spmm_columns<avx512_amx::Bf16>(w, begin, end, x, tokens, sums);
}

void se::spmm_columns_i8_avx512_amx(const Columns& w, int64_t begin, int64_t end, const void* x,
                                    int64_t tokens, void* sums) {
  avx512_amx::spmm_columns<avx512_amx::Int8>(w, begin, end, x, tokens, sums);
}
