#include "ops/linear.h"

#include <omp.h>

#include <algorithm>
#include <atomic>

#include "kernels/spmm_tiles/kernel.h"
#include "ops/spmm.h"
#include "ops/spmv.h"
#include "ops/workspace.h"

namespace se {
namespace {

// Bytes of results above which they bypass the caches: the first would be evicted before the last
// are written.
constexpr int64_t kCached = int64_t{8} << 20;
constexpr int64_t kScaled = 16;     // tokens whose scales a thread computes at a time
constexpr int64_t kConverted = 64;  // rows of a panel that it converts
thread_local Workspace panel_memory, accumulator_memory, scale_memory;

template <class Work>
void linear_panels(const Work& work, const Activations& a, Epilogue epilogue, Capabilities caps,
                   int threads) {
  epilogue.stream = a.tokens * work.w.out * 4 > kCached;
  const PanelIoKernels& panel = panel_io(caps);
  const Panel kind = work.kernel.panel;
  const bool quads = kind == Panel::quads, bytes = kind == Panel::bytes;
  const bool halves = kind == Panel::halves, scaled = bytes || halves;
  const int64_t widest = work.max_tokens(), chunks = work.chunks();
  // All memory is allocated before the threads start: an exception must not leave a parallel
  // region.
  const int64_t sums_size = work.sums() * widest;
  float* sums = accumulator_memory.get<float>(threads * sums_size);
  float* scales = quads || scaled ? scale_memory.get<float>(kPanelsPerPass * widest) : nullptr;

  for (int64_t t0 = 0; t0 < a.tokens; t0 += kPanelsPerPass * widest) {
    const int64_t pass = std::min(a.tokens - t0, kPanelsPerPass * widest);
    const int64_t count = ceil_div(pass, widest);
    // At least one feature, so that kernels may form the address of an empty K-block.
    const int64_t panel_size = panel_bytes(kind, std::max<int64_t>(a.features, 1), widest);
    char* packed = panel_memory.get<char>(count * panel_size);
    const auto live_of = [&](int64_t p) { return std::min(pass - p * widest, widest); };
    const auto width_of = [&](int64_t p) {
      return panel_width(live_of(p), work.min_tokens(), widest);
    };
    // With fewer panels than threads, each panel is divided among the threads: by features, or by
    // tokens where one scale spans all features.
    const int64_t cuts = count >= threads ? 1 : threads;
    const int64_t slice = ceil_div(ceil_div(a.features, cuts), 16) * 16;
    if (scaled) std::fill(scales + pass, scales + count * widest, halves ? 1.0f : 0.0f);
    const auto scale_tokens = halves ? panel.token_powers : panel.token_scales;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      if (scaled) {
        const int64_t groups = ceil_div(pass, kScaled);
#pragma omp for schedule(static)
        for (int64_t g = 0; g < groups; ++g) {
          const int64_t t = g * kScaled;
          scale_tokens(a.at(t0 + t, 0), a.dtype, a.stride, std::min(kScaled, pass - t), a.features,
                       scales + t);
        }
      }
#pragma omp for schedule(static)
      for (int64_t i = 0; i < count * cuts; ++i) {
        const int64_t p = i / cuts, width = width_of(p), token = t0 + p * widest;
        char* to = packed + p * panel_size;
        if (halves && i % cuts == 0)
          std::copy_n(scales + p * widest, width,
                      reinterpret_cast<float*>(to + width * lane_bytes(kind, a.features)));
        if (quads) {
          const int64_t lanes = ceil_div(ceil_div(width, cuts), 16) * 16, t = i % cuts * lanes;
          if (t < width)
            panel.quantize(a.at(token + t, 0), a.dtype, a.stride,
                           std::max<int64_t>(live_of(p) - t, 0), a.features,
                           std::min(lanes, width - t), width, to + t * 4, scales + p * widest + t);
        } else if (const int64_t k = i % cuts * slice; k < a.features) {
          const int64_t n = std::min(slice, a.features - k);
          to += width * lane_bytes(kind, k);
          if (scaled)
            (halves ? panel.pack_halves : panel.pack_bytes)(
                a.at(token, k), a.dtype, a.stride, live_of(p), n, width, scales + p * widest, to);
          else
            panel.pack(a.at(token, k), a.dtype, a.stride, live_of(p), n, width, to, kind);
        }
      }
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < chunks * count; ++i) {
        const int64_t c = i / count, p = i % count, width = width_of(p);
        float* acc = sums + omp_get_thread_num() * sums_size;
        work.run(c, packed + p * panel_size, width, acc);
        panel.store({acc, width, quads || bytes ? scales + p * widest : nullptr}, live_of(p),
                    work.row0(c), work.rows(c), at_token(epilogue, t0 + p * widest));
      }
      // Orders the non-temporal stores before whatever follows the region.
      std::atomic_thread_fence(std::memory_order_seq_cst);
    }
  }
}

}  // namespace

int64_t linear_panel_width(const PackedWeight& w, int64_t tokens, Capabilities caps) {
  return with_layer_work(
      w, caps, 1, [&](const auto& work) { return panel_width(tokens, 16, work.max_tokens()); });
}

void linear_on_panels(const PackedWeight& w, const LinearPanels& p, Capabilities caps) {
  const int threads = omp_get_max_threads();
  const LayerPanelKernels& lane = layer_panels(caps);
  const auto multiply = [&](const auto& work) {
    const float* row_scales = work.row_scales();
    const Panel kind = work.kernel.panel;
    const int64_t chunks = work.chunks(), out = work.w.out, parts = p.width / 16;
    const int64_t slices = ceil_div(p.in, kConverted);
    const int64_t from_bytes = p.width * p.in * 4, to_bytes = panel_bytes(kind, p.in, p.width);
    float* sums = accumulator_memory.get<float>(threads * work.sums() * p.width);
    const bool int8 = row_scales != nullptr, converts = kind != Panel::floats;
    const bool halves = kind == Panel::halves;
    char* converted = converts ? panel_memory.get<char>(p.panels * to_bytes) : nullptr;
    float* scales = int8 ? scale_memory.get<float>(p.panels * p.width) : nullptr;
    const auto powers_of = [&](int64_t panel) {
      return reinterpret_cast<float*>(converted + panel * to_bytes +
                                      p.width * lane_bytes(kind, p.in));
    };
#pragma omp parallel num_threads(threads)
    {
      if (int8 || halves) {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < p.panels * parts; ++i) {
          const int64_t panel = i / parts, lane0 = i % parts * 16;
          const float* from = p.x + panel * p.in * p.width + lane0;
          if (halves) {
            lane.lane_powers(from, p.width, p.in, powers_of(panel) + lane0);
            continue;
          }
          float *to = reinterpret_cast<float*>(converted + panel * to_bytes) + lane0,
                *to_scales = scales + panel * p.width + lane0;
          if (kind == Panel::quads)
            lane.quantize(from, p.width, p.in, 16, to, to_scales);
          else
            lane.lane_scales(from, p.width, p.in, 16, to_scales);
        }
      }
      if (converts && kind != Panel::quads) {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < p.panels * slices; ++i) {
          const int64_t panel = i / slices, k = i % slices * kConverted;
          const int64_t n = std::min(kConverted, p.in - k);
          const float* from = p.x + (panel * p.in + k) * p.width;
          char* to = converted + panel * to_bytes + p.width * lane_bytes(kind, k);
          if (kind == Panel::bf16)
            lane.rows_to_bf16(from, n, p.width, to);
          else if (halves)
            lane.rows_to_halves(from, n, p.width, powers_of(panel), to);
          else
            lane.rows_to_bytes(from, n, p.width, scales + panel * p.width, to);
        }
      }
      const char* x = converts ? converted : reinterpret_cast<const char*>(p.x);
      const int64_t x_bytes = converts ? to_bytes : from_bytes;
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < chunks * p.panels; ++i) {
        const int64_t c = i / p.panels, panel = i % p.panels;
        const PanelEpilogue epilogue{p.activation, row_scales, p.bias,
                                     nullptr,      false,      p.y + panel * out * p.width};
        multiply_chunk(work, lane, c, x + panel * x_bytes,
                       int8 ? scales + panel * p.width : nullptr, p.width, epilogue,
                       sums + omp_get_thread_num() * work.sums() * p.width);
      }
    }
  };
  with_layer_work(w, caps, threads, multiply);
}

int threads_for(int64_t work) { return work < kSerialWork ? 1 : omp_get_max_threads(); }

Epilogue at_token(const Epilogue& e, int64_t token) {
  Epilogue r = e;
  const int64_t size = e.dtype == DType::f32 ? 4 : 2;
  r.y = static_cast<char*>(e.y) + token * e.y_stride * size;
  if (e.residual)
    r.residual = static_cast<const char*>(e.residual) + token * e.residual_stride * size;
  return r;
}

const char* linear_kernel(const PackedWeight& weight, int64_t tokens, Capabilities caps) {
  if (const Columns* w = std::get_if<Columns>(&weight)) return spmm_columns(w->dtype, caps).name;
  if (const Runs* w = std::get_if<Runs>(&weight)) return RunsWork(*w, caps, true).kernel.name;
  if (const Strips* w = std::get_if<Strips>(&weight); w && tokens > kStripsRowTokens)
    return spmm_strips(w->dtype, caps).name;
  if (const Tiles* w = std::get_if<Tiles>(&weight); w && tokens > kTilesRowTokens)
    return spmm_tiles(w->dtype, caps).name;
  return with_row_work(weight, caps, [](const auto& work) { return work.kernel.name; });
}

void linear(const Strips& w, const Activations& x, const Epilogue& epilogue, Capabilities caps) {
  if (x.tokens == 0 || w.out == 0) return;
  if (x.tokens <= kStripsRowTokens) return linear_on_rows(w, x, epilogue, caps);
  const int threads = threads_for(StripsWork::entries(w) * x.tokens);
  linear_panels(StripsWork(w, caps, threads), x, epilogue, caps, threads);
}

void linear(const Columns& w, const Activations& x, const Epilogue& epilogue, Capabilities caps) {
  if (x.tokens == 0 || w.out == 0) return;
  const int threads = threads_for(ColumnsWork::entries(w) / 16 * x.tokens);
  Epilogue e = epilogue;
  e.row_scales = w.scales;
  linear_panels(ColumnsWork(w, caps, threads), x, e, caps, threads);
}

void linear(const Runs& w, const Activations& x, const Epilogue& epilogue, Capabilities caps) {
  if (x.tokens == 0 || w.out == 0) return;
  const int threads = threads_for(RunsWork::entries(w) * x.tokens);
  Epilogue e = epilogue;
  e.row_scales = w.scales;
  linear_panels(RunsWork(w, caps, true), x, e, caps, threads);
}

}  // namespace se
