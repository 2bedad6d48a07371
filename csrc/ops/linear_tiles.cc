// linear with a weight in tiles. Tokens are packed once a pass; each band of the weight is expanded
// once for all tokens of a pass; results leave as rows.
#include <omp.h>

#include <algorithm>
#include <atomic>

#include "kernels/spmm_tiles/kernel.h"
#include "ops/linear.h"
#include "ops/workspace.h"

namespace se {
namespace {

constexpr int64_t kGroup = 16, kPair = 32;  // tokens of one tile, and of one product
constexpr int64_t kSums = kPair * Tiles::kBand;
// Bytes of packed tokens and of an expanded band that stay in the L2 of a core together.
constexpr int64_t kTokenBytes = int64_t{1} << 20, kBandBytes = int64_t{1} << 18;
constexpr int64_t kMostTokens = 512;
// Bytes of results above which they bypass the caches.
constexpr int64_t kCached = int64_t{8} << 20;
thread_local Workspace token_memory, scratch_memory, scale_memory, sum_memory, span_memory;

// How a product is cut: into passes of tokens and, where a band or its tokens would not fit, blocks
// of columns. With several blocks the sums of all bands are kept until the last one.
struct Plan {
  int64_t parts;        // of a float
  int64_t group_bytes;  // one part of 16 packed tokens
  int64_t pass;         // tokens
  int64_t block;        // columns of tiles
  int64_t blocks;

  Plan(const Tiles& w, int64_t tokens) {
    parts = w.dtype == DType::f32 ? 3 : 1;
    // At least one column, so that kernels may form the address of the first.
    const int64_t columns = std::max<int64_t>(w.columns_of_tiles(), 1);
    group_bytes = columns * 1024;
    const int64_t most = kBandBytes / (2 * parts * 1024);
    blocks = ceil_div(columns, most);
    block = ceil_div(columns, blocks);
    const int64_t fitting = kTokenBytes / (block * parts * 1024) * kGroup;
    pass = std::clamp(fitting / kPair * kPair, kPair, kMostTokens);
    pass = std::min(pass, ceil_div(tokens, kPair) * kPair);
  }
};

// All rows of a band for tokens or weights without sums of bf16.
void exact_band(const Tiles& w, int64_t band, const Activations& x, Epilogue e, Capabilities caps) {
  Tiles one = w;
  const int64_t row = band * Tiles::kBand, size = e.dtype == DType::f32 ? 4 : 2;
  one.out = std::min(Tiles::kBand, w.out - row);
  one.bands = 1;
  one.entries += band;
  one.tiles += band;
  one.starts += band;
  if (e.bias) e.bias += row;
  e.y = static_cast<char*>(e.y) + row * size;
  if (e.residual) e.residual = static_cast<const char*>(e.residual) + row * size;
  linear_on_rows(one, x, e, caps);
}

// One call of `linear`, shared by its threads.
struct Call {
  const Tiles& w;
  const Activations& a;
  const Epilogue &given, &epilogue;
  const SpmmTilesKernel& kernel;
  const PanelIoKernels& io;
  Capabilities caps;
  const Plan plan;
  int64_t part;       // elements from one part of all packed tokens to the next
  char* tokens;       // [parts][groups][columns of tiles][16][depth]
  float* scales;      // int8: [pass]
  char* sums;         // several blocks: [bands][pass][32]
  TileSpanEnd* ends;  // several blocks: [2][bands], where each band goes on
  std::atomic<bool> fits{true};

  bool int8() const { return w.dtype == DType::i8; }

  void pack(int64_t t0, int64_t live, int64_t g) {
    const int64_t t = g * kGroup, count = std::min(kGroup, live - t);
    const char* from = a.at(t0 + t, 0);
    char* to = tokens + g * plan.group_bytes;
    if (int8())
      io.quantize_tiles(from, a.dtype, a.stride, count, a.features, to, scales + t);
    else if (!io.pack_tiles(from, a.dtype, a.stride, count, a.features, plan.parts, part, to))
      fits = false;
  }

  // Pairs [begin, end) of groups of tokens times block k of a band.
  void multiply(int64_t t0, int64_t live, int64_t band, int64_t k, int64_t begin, int64_t end,
                char* scratch, char* own_sums) {
    const bool last = k + 1 == plan.blocks;
    const TileSpanEnd from =
        k == 0 ? TileSpanEnd{true, w.tiles[band], w.starts[band]} : ends[k % 2 * w.bands + band];
    bool exact = !fits || !from.fits;
    const TileSpan span = span_of(band, k, from);
    TileSpanEnd next = from;
    for (int64_t p = begin; p < end && !exact; ++p) {
      const int64_t g = 2 * p;
      const TokenTiles x{tokens + g * plan.group_bytes, part,
                         std::min<int64_t>(2, groups(live) - g)};
      char* to = plan.blocks == 1 ? own_sums : sums + (band * plan.pass + p * kPair) * 32 * 4;
      const TileSpanEnd found = kernel.run(w, span, x, p == begin, k > 0, scratch, to);
      if (p == begin) next = found;
      exact = !next.fits;
      if (last && !exact) store(t0, live, band, g, to);
    }
    if (plan.blocks > 1 && begin == 0) ends[(k + 1) % 2 * w.bands + band] = next;
    if (!exact || !last) return;
    const int64_t t = begin * kPair, count = std::min(live, end * kPair) - t;
    const Activations some{a.at(t0 + t, 0), a.dtype, a.stride, count, a.features};
    exact_band(w, band, some, at_token(given, t0 + t), caps);
  }

  TileSpan span_of(int64_t band, int64_t k, const TileSpanEnd& from) const {
    const uint16_t *first = w.columns + w.entries[band], *end = w.columns + w.entries[band + 1];
    const auto at = [&](int64_t column) {
      return std::lower_bound(first, end, column) - w.columns;
    };
    return {at(k * plan.block), at((k + 1) * plan.block), from.tile, from.value};
  }

  void store(int64_t t0, int64_t live, int64_t band, int64_t g, const char* from) const {
    const int64_t t = g * kGroup, row = band * Tiles::kBand;
    io.store_tiles(from, int8() ? scales + t : nullptr, std::min(kPair, live - t), row,
                   std::min(Tiles::kBand, w.out - row), at_token(epilogue, t0 + t));
  }

  static int64_t groups(int64_t live) { return ceil_div(live, kGroup); }
};

}  // namespace

void linear(const Tiles& w, const Activations& a, const Epilogue& given, Capabilities caps) {
  if (a.tokens == 0 || w.out == 0) return;
  if (a.tokens <= kTilesRowTokens) return linear_on_rows(w, a, given, caps);
  Epilogue epilogue = given;
  epilogue.row_scales = w.scales;
  epilogue.stream = a.tokens * w.out * (given.dtype == DType::f32 ? 4 : 2) > kCached;
  const SpmmTilesKernel& kernel = spmm_tiles(w.dtype, caps);
  const Plan plan(w, a.tokens);
  const int threads = threads_for(int64_t{w.tiles[w.bands]} * w.size() * a.tokens / 256);
  // All memory is allocated before the threads start: an exception must not leave a parallel
  // region.
  const int64_t part_bytes = plan.pass / kGroup * plan.group_bytes;
  const int64_t scratch_size = 2 * plan.block * kernel.scratch, own = scratch_size + kSums * 4;
  char* scratch = scratch_memory.get<char>(threads * own);
  const bool blocked = plan.blocks > 1;
  Call call{w,
            a,
            given,
            epilogue,
            kernel,
            panel_io(caps),
            caps,
            plan,
            part_bytes / (w.dtype == DType::i8 ? 1 : 2),
            token_memory.get<char>(part_bytes * plan.parts),
            w.dtype == DType::i8 ? scale_memory.get<float>(plan.pass) : nullptr,
            blocked ? sum_memory.get<char>(w.bands * plan.pass * 32 * 4) : nullptr,
            blocked ? span_memory.get<TileSpanEnd>(2 * w.bands) : nullptr};

  for (int64_t t0 = 0; t0 < a.tokens; t0 += plan.pass) {
    const int64_t live = std::min(plan.pass, a.tokens - t0);
    const int64_t pairs = ceil_div(live, kPair);
    // With few bands the tokens are divided among the threads, too.
    const int64_t cuts = std::min(pairs, ceil_div(2 * threads, w.bands));
    call.fits = true;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(static)
      for (int64_t g = 0; g < Call::groups(live); ++g) call.pack(t0, live, g);
      char* mine = scratch + omp_get_thread_num() * own;
      kernel.enter();
      for (int64_t k = 0; k < plan.blocks; ++k) {
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < w.bands * cuts; ++i)
          call.multiply(t0, live, i / cuts, k, pairs * (i % cuts) / cuts,
                        pairs * (i % cuts + 1) / cuts, mine, mine + scratch_size);
      }
      kernel.leave();
      // Orders the non-temporal stores before whatever follows the region.
      std::atomic_thread_fence(std::memory_order_seq_cst);
    }
  }
}

}  // namespace se
