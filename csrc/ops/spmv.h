// Products with single rows of activations: the division of a packed weight among threads, and its
// kernel. Used by the op for a few tokens and by the native layers.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "kernels/spmv_bits/kernel.h"
#include "kernels/spmv_groups/kernel.h"
#include "kernels/spmv_sellp/kernel.h"
#include "kernels/spmv_strips/kernel.h"
#include "kernels/spmv_tiles/kernel.h"
#include "ops/linear.h"
#include "ops/workspace.h"

namespace se {

constexpr int64_t kTokens = 8;  // the largest kAtOnce of the structs below

inline int64_t padded(int64_t in) { return ceil_div(in, 64) * 64; }

// Prepares x for every kernel but those of int8 and bf16 bits: floats, zeros past `in`.
inline float copy_row(const float* x, int64_t in, void* prepared) {
  std::memcpy(prepared, x, in * sizeof(float));
  std::memset(static_cast<float*>(prepared) + in, 0, (padded(in) + 64 - in) * sizeof(float));
  return 1.0f;
}

// Bytes of the row that `prepare` makes from x [in].
inline int64_t prepared_bytes(int64_t in) { return (padded(in) + 64) * 4; }

// One struct per packing. work() counts sequential multiply-adds; part(i, n) is the first of the
// units (rows, groups or strips) of thread i of n; kAtOnce is the most tokens of one call of run().
struct SellPWork {
  const SellP& w;
  const SpmvSellPKernel& kernel;
  static constexpr int64_t kAtOnce = 4;

  int64_t work() const {
    return int64_t{w.starts[w.groups]} * 4;
  }  // 16 entries per step, 4 in sequence
  int64_t sums() const { return w.out + 1; }
  int64_t part(int64_t i, int64_t n) const {  // equal numbers of steps
    const int64_t step = w.starts[w.groups] * i / n;
    return i == n ? w.groups : std::lower_bound(w.starts, w.starts + w.groups, step) - w.starts;
  }
  float prepare(const float* x, void* prepared) const { return copy_row(x, w.in, prepared); }
  void run(int64_t begin, int64_t end, const char* x, int64_t stride, int64_t tokens, float* y,
           int64_t y_stride) const {
    kernel.run(w, begin, end, reinterpret_cast<const float*>(x), stride / 4, tokens, y, y_stride);
  }
};

struct BitsWork {
  const Bits& w;
  const SpmvBitsKernel& kernel;
  static constexpr int64_t kAtOnce = 4;

  int64_t work() const { return w.out * w.in / 8; }
  int64_t sums() const { return w.out; }
  int64_t part(int64_t i, int64_t n) const {
    return w.out * i / n;
  }  // zeros cost as much as values
  float prepare(const float* x, void* prepared) const { return kernel.prepare(x, w.in, prepared); }
  void run(int64_t begin, int64_t end, const char* x, int64_t stride, int64_t tokens, float* y,
           int64_t y_stride) const {
    kernel.run(w, begin, end, x, stride, tokens, y, y_stride);
  }
};

struct GroupsWork {
  const Groups& w;
  const SpmvGroupsKernel& kernel;
  static constexpr int64_t kAtOnce = 4;

  int64_t work() const { return w.out * w.steps * 4; }
  int64_t sums() const { return w.out; }
  int64_t part(int64_t i, int64_t n) const { return w.out * i / n; }
  float prepare(const float* x, void* prepared) const { return copy_row(x, w.in, prepared); }
  void run(int64_t begin, int64_t end, const char* x, int64_t stride, int64_t tokens, float* y,
           int64_t y_stride) const {
    kernel.run(w, begin, end, reinterpret_cast<const float*>(x), stride / 4, tokens, y, y_stride);
  }
};

struct RowStripsWork {
  const Strips& w;
  const SpmvStripsKernel& kernel;
  static constexpr int64_t kAtOnce = 8;

  int64_t work() const { return w.pointers[w.k_blocks * w.strips] * w.height; }
  int64_t sums() const { return w.strips * w.height; }
  int64_t part(int64_t i, int64_t n) const { return w.strips * i / n; }
  float prepare(const float* x, void* prepared) const { return copy_row(x, w.in, prepared); }
  void run(int64_t begin, int64_t end, const char* x, int64_t stride, int64_t tokens, float* y,
           int64_t y_stride) const {
    kernel.run(w, begin, end, reinterpret_cast<const float*>(x), stride / 4, tokens, y, y_stride);
  }
};

struct TilesWork {
  const Tiles& w;
  const SpmvTilesKernel& kernel;
  static constexpr int64_t kAtOnce = 4;

  int64_t work() const { return int64_t{w.tiles[w.bands]} * w.size() / 8; }
  int64_t sums() const { return w.bands * Tiles::kBand; }
  int64_t part(int64_t i, int64_t n) const { return w.bands * i / n; }
  float prepare(const float* x, void* prepared) const { return kernel.prepare(x, w.in, prepared); }
  void run(int64_t begin, int64_t end, const char* x, int64_t stride, int64_t tokens, float* y,
           int64_t y_stride) const {
    kernel.run(w, begin, end, x, stride, tokens, y, y_stride);
  }
};

inline SellPWork work_on_rows(const SellP& w, Capabilities caps) {
  return {w, spmv_sellp(w.dtype, caps)};
}
inline BitsWork work_on_rows(const Bits& w, Capabilities caps) {
  return {w, spmv_bits(w.dtype, caps)};
}
inline GroupsWork work_on_rows(const Groups& w, Capabilities caps) {
  return {w, spmv_groups(w.dtype, caps)};
}
inline RowStripsWork work_on_rows(const Strips& w, Capabilities caps) {
  return {w, spmv_strips(w.dtype, caps)};
}

inline TilesWork work_on_rows(const Tiles& w, Capabilities caps) {
  return {w, spmv_tiles(w.dtype, caps)};
}

// Calls f with the struct of a weight that multiplies single rows: any packing but Runs.
template <class F>
auto with_row_work(const PackedWeight& w, Capabilities caps, F f) {
  if (const SellP* sellp = std::get_if<SellP>(&w)) return f(work_on_rows(*sellp, caps));
  if (const Bits* bits = std::get_if<Bits>(&w)) return f(work_on_rows(*bits, caps));
  if (const Groups* groups = std::get_if<Groups>(&w)) return f(work_on_rows(*groups, caps));
  if (const Tiles* tiles = std::get_if<Tiles>(&w)) return f(work_on_rows(*tiles, caps));
  return f(work_on_rows(std::get<Strips>(w), caps));
}

// The scale of each output row of an int8 weight, or null.
template <class W>
const float* row_scales(const W& w) {
  if constexpr (std::is_same_v<W, Strips>)
    return nullptr;
  else
    return w.scales;
}

}  // namespace se
