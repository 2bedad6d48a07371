// spmm_tiles: entries of one band of a weight in tiles times up to 32 tokens.
#pragma once

#include "core/capabilities.h"
#include "layouts/tiles.h"

namespace se {

// The tokens of one product, in the layout that panel_io writes: per 16 tokens [tile
// columns][16][depth], with `part` elements from one part of a float to the next.
struct TokenTiles {
  const void* x;
  int64_t part;
  int64_t groups;  // of 16 tokens: 1 or 2
};

// Some entries of a band, one after another.
struct TileSpan {
  int64_t begin, end;   // entries
  int64_t tile, value;  // the first of each
};

// Where the entries after a span begin, and whether all its values have sums of bf16.
struct TileSpanEnd {
  bool fits;
  int64_t tile, value;
};

struct SpmmTilesKernel {
  const char* name;
  DType weight;
  CompileTarget target;
  // Bytes of scratch memory for each tile of a span.
  int64_t scratch;
  // Called by each thread before its first product and after its last one: other code of the
  // thread may configure the tile registers in between.
  void (*enter)();
  void (*leave)();
  // sums[t][r] (+)= sum over the columns k of a span of W[r, k] * x[t][k], for 16 or 32 tokens t
  // and the 32 rows r of its band.
  //   expand   the first product with a span writes its tiles to scratch; the next ones read them
  //   add      to the sums that are there
  //   scratch  64-byte aligned, for all tiles of the span
  //   sums     [16 groups][32] floats, int32 for int8; 64-byte aligned
  // bf16 products are summed in float, int8 exactly. A float32 is the sum of three bf16, and six
  // of the nine products of two such sums are computed; the others are below 2^-25 of a product.
  // Zeros are multiplied too, as in a dense product, so Inf and NaN reach all rows of a stored
  // tile. float32 values without such a sum (Inf, NaN and magnitudes above 3.389e38) are reported
  // by the product that expands them, and `sums` is undefined then.
  TileSpanEnd (*run)(const Tiles& w, const TileSpan& span, const TokenTiles& x, bool expand,
                     bool add, void* scratch, void* sums);
};

// The first row of kernels.inc for `weight` that `caps` covers.
const SpmmTilesKernel& spmm_tiles(DType weight, Capabilities caps);

#define SE_SPMM_TILES(weight, target, scratch)                                           \
  TileSpanEnd spmm_tiles_##weight##_##target(const Tiles& w, const TileSpan& span,       \
                                             const TokenTiles& x, bool expand, bool add, \
                                             void* scratch_memory, void* sums);
#include "kernels/spmm_tiles/kernels.inc"
#undef SE_SPMM_TILES
#define SE_TILE_REGISTERS(target) \
  void enter_tiles_##target();    \
  void leave_tiles_##target();
SE_TILE_REGISTERS(scalar)
#if SE_X86
SE_TILE_REGISTERS(avx512_amx)
#endif
#undef SE_TILE_REGISTERS

}  // namespace se
