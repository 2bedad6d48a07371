// Up to four tokens at a time: rows of W are split over the threads, each thread's share the same
// at every call, so that it stays in that core's cache.
#include <omp.h>

#include <algorithm>
#include <cstring>

#include "kernels/spmv_bits/kernel.h"
#include "kernels/spmv_groups/kernel.h"
#include "kernels/spmv_sellp/kernel.h"
#include "kernels/spmv_strips/kernel.h"
#include "ops/linear.h"
#include "ops/workspace.h"

namespace se {
namespace {

constexpr int64_t kTokens = 4;

thread_local Workspace prepared_memory, sums_memory, wide_memory;

int64_t padded(int64_t in) { return ceil_div(in, 64) * 64; }

// The x of all but int8 bits: floats, zeros past `in`.
float copy(const float* x, int64_t in, void* prepared) {
  std::memcpy(prepared, x, in * sizeof(float));
  std::memset(static_cast<float*>(prepared) + in, 0, (padded(in) + 64 - in) * sizeof(float));
  return 1.0f;
}

// How a packed weight is split, and its work in multiply-adds that run one by one: `parts` units,
// of which a thread takes a range.
struct SellPWork {
  const SellP& w;
  const SpmvSellPKernel& kernel;
  static constexpr int64_t kAtOnce = kTokens;

  int64_t work() const { return int64_t{w.starts[w.groups]} * 4; }  // 16 at once
  int64_t sums() const { return w.out + 1; }
  int64_t part(int64_t i, int64_t n) const {  // balanced by steps
    const int64_t step = w.starts[w.groups] * i / n;
    return i == n ? w.groups : std::lower_bound(w.starts, w.starts + w.groups, step) - w.starts;
  }
  float prepare(const float* x, void* prepared) const { return copy(x, w.in, prepared); }
  void run(int64_t begin, int64_t end, const char* x, int64_t stride, int64_t tokens, float* y,
           int64_t y_stride) const {
    kernel.run(w, begin, end, reinterpret_cast<const float*>(x), stride / 4, tokens, y, y_stride);
  }
};

struct BitsWork {
  const Bits& w;
  const SpmvBitsKernel& kernel;
  static constexpr int64_t kAtOnce = kTokens;

  int64_t work() const { return w.out * w.in / 8; }
  int64_t sums() const { return w.out; }
  int64_t part(int64_t i, int64_t n) const { return w.out * i / n; }  // a zero costs as much
  float prepare(const float* x, void* prepared) const { return kernel.prepare(x, w.in, prepared); }
  void run(int64_t begin, int64_t end, const char* x, int64_t stride, int64_t tokens, float* y,
           int64_t y_stride) const {
    kernel.run(w, begin, end, x, stride, tokens, y, y_stride);
  }
};

struct GroupsWork {
  const Groups& w;
  const SpmvGroupsKernel& kernel;
  static constexpr int64_t kAtOnce = kTokens;

  int64_t work() const { return w.out * w.steps * 4; }
  int64_t sums() const { return w.out; }
  int64_t part(int64_t i, int64_t n) const { return w.out * i / n; }
  float prepare(const float* x, void* prepared) const { return copy(x, w.in, prepared); }
  void run(int64_t begin, int64_t end, const char* x, int64_t stride, int64_t tokens, float* y,
           int64_t y_stride) const {
    kernel.run(w, begin, end, reinterpret_cast<const float*>(x), stride / 4, tokens, y, y_stride);
  }
};

struct StripsWork {
  const Strips& w;
  const SpmvStripsKernel& kernel;
  static constexpr int64_t kAtOnce = 1;

  int64_t work() const { return w.pointers[w.blocks * w.strips] * w.height; }
  int64_t sums() const { return w.strips * w.height; }
  int64_t part(int64_t i, int64_t n) const { return w.strips * i / n; }
  float prepare(const float* x, void* prepared) const { return copy(x, w.in, prepared); }
  void run(int64_t begin, int64_t end, const char* x, int64_t, int64_t, float* y, int64_t) const {
    kernel.run(w, begin, end, reinterpret_cast<const float*>(x), y + begin * w.height);
  }
};

const float* as_floats(const Activations& a, int64_t token) {
  if (a.dtype == DType::f32) return reinterpret_cast<const float*>(a.at(token, 0));
  float* wide = wide_memory.get<float>(a.features);
  const uint16_t* bits = reinterpret_cast<const uint16_t*>(a.at(token, 0));
  for (int64_t k = 0; k < a.features; ++k) {
    const uint32_t u = static_cast<uint32_t>(bits[k]) << 16;
    std::memcpy(wide + k, &u, 4);
  }
  return wide;
}

template <class Work>
void linear_few(const Work& work, const Activations& a, const Epilogue& epilogue, Isa isa) {
  const PanelKernels& panel = panels(isa);
  const int64_t out = work.w.out, x_stride = (padded(a.features) + 64) * 4;
  const int64_t y_stride = ceil_div(work.sums(), 16) * 16;
  char* x = prepared_memory.get<char>(kTokens * x_stride);
  float* sums = sums_memory.get<float>(kTokens * y_stride);
  for (int64_t t0 = 0; t0 < a.tokens; t0 += Work::kAtOnce) {
    const int64_t tokens = std::min(a.tokens - t0, Work::kAtOnce);
    float scales[kTokens];
    for (int64_t t = 0; t < tokens; ++t)
      scales[t] = work.prepare(as_floats(a, t0 + t), x + t * x_stride);
    const int threads = threads_for(work.work() * tokens);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      const int64_t i = omp_get_thread_num(), n = omp_get_num_threads();
      work.run(work.part(i, n), work.part(i + 1, n), x, x_stride, tokens, sums, y_stride);
#pragma omp barrier
      const int64_t row = out * i / n, end = out * (i + 1) / n;
      for (int64_t t = 0; t < tokens; ++t)
        panel.store_token(sums + t * y_stride + row, scales[t], row, end - row,
                          at_token(epilogue, t0 + t));
    }
  }
}

}  // namespace

void linear(const SellP& w, const Activations& x, const Epilogue& epilogue, Isa isa) {
  Epilogue e = epilogue;
  e.row_scales = w.scales;
  if (x.tokens && w.out) linear_few(SellPWork{w, spmv_sellp(w.dtype, isa)}, x, e, isa);
}

void linear(const Bits& w, const Activations& x, const Epilogue& epilogue, Isa isa) {
  Epilogue e = epilogue;
  e.row_scales = w.scales;
  if (x.tokens && w.out) linear_few(BitsWork{w, spmv_bits(w.dtype, isa)}, x, e, isa);
}

void linear(const Groups& w, const Activations& x, const Epilogue& epilogue, Isa isa) {
  Epilogue e = epilogue;
  e.row_scales = w.scales;
  if (x.tokens && w.out) linear_few(GroupsWork{w, spmv_groups(w.dtype, isa)}, x, e, isa);
}

void linear_one_token(const Strips& w, const Activations& x, const Epilogue& epilogue, Isa isa) {
  linear_few(StripsWork{w, spmv_strips(w.dtype, isa)}, x, epilogue, isa);
}

}  // namespace se
