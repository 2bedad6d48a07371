#include "ops/conv1d.h"

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "ops/spmm.h"
#include "ops/workspace.h"

namespace se {
namespace {

thread_local Workspace window_memory, quad_memory, scale_memory, sum_memory;

// Calls f(sequence, step, lane, count) for each sequence of which outputs [first, first + live) of
// all sequences, one after the other, hold `count` steps, which go to the lanes from `lane` on.
template <class F>
void for_each_sequence(const Conv1d& c, int64_t first, int64_t live, F f) {
  int64_t sequence = first / c.steps, step = first % c.steps;
  for (int64_t lane = 0; lane < live; ++sequence, step = 0) {
    const int64_t count = std::min(c.steps - step, live - lane);
    f(sequence, step, lane, count);
    lane += count;
  }
}

// to[i] = x[at + i stride], or zero outside of x [length].
void copy_times(const float* x, int64_t length, int64_t at, int64_t stride, int64_t count,
                float* to) {
  int64_t i = 0;
  const int64_t begin = at < 0 ? std::min(count, ceil_div(-at, stride)) : 0;
  const int64_t end = at < length ? std::min(count, ceil_div(length - at, stride)) : 0;
  for (; i < begin; ++i) to[i] = 0;
  if (stride == 1 && i < end) {
    std::memcpy(to + i, x + at + i, (end - i) * sizeof(float));
    i = end;
  }
  for (; i < end; ++i) to[i] = x[at + i * stride];
  for (; i < count; ++i) to[i] = 0;
}

// The panel [channels x kernel][width] of the windows of outputs [first, first + live): row (c, i)
// is channel c from tap i on. Only rows of channels [begin, end).
void pack_windows(const Conv1d& c, int64_t first, int64_t live, int64_t begin, int64_t end,
                  int64_t width, float* panel) {
  float* row = panel + begin * c.kernel * width;
  for (int64_t channel = begin; channel < end; ++channel)
    for (int64_t tap = 0; tap < c.kernel; ++tap, row += width) {
      for_each_sequence(c, first, live, [&](int64_t s, int64_t step, int64_t lane, int64_t count) {
        copy_times(c.x + s * c.x_sequence + channel * c.x_channel, c.length,
                   step * c.stride + tap * c.dilation - c.left, c.stride, count, row + lane);
      });
      std::fill(row + live, row + width, 0.0f);
    }
}

void store_steps(const Conv1d& c, const float* rows, int64_t width, int64_t first, int64_t live,
                 int64_t row0, int64_t count) {
  for (int64_t r = 0; r < count; ++r, rows += width)
    for_each_sequence(c, first, live, [&](int64_t s, int64_t step, int64_t lane, int64_t n) {
      std::memcpy(c.y + s * c.y_sequence + (row0 + r) * c.y_channel + step, rows + lane,
                  n * sizeof(float));
    });
}

template <class Work>
void conv1d_on_panels(const Work& work, const Conv1d& c, Isa isa, int threads) {
  const LaneKernels& lane = lanes(isa);
  const int64_t widest = work.max_tokens(), chunks = work.chunks(), outputs = c.batch * c.steps;
  const int64_t inner = c.channels * c.kernel, depth = std::max<int64_t>(inner, 1);
  const float* row_scales = work.row_scales();
  const bool int8 = row_scales != nullptr;
  const int64_t most = std::min(kPanelsPerPass, ceil_div(outputs, widest));
  // All memory is taken before the threads start: nothing may throw inside a parallel region.
  const int64_t sums_size = work.sums() * widest;
  float* all_sums = sum_memory.get<float>(threads * 2 * sums_size);
  float* windows = window_memory.get<float>(most * depth * widest);
  float* quads = int8 ? quad_memory.get<float>(most * depth * widest) : nullptr;
  float* scales = int8 ? scale_memory.get<float>(most * widest) : nullptr;

  for (int64_t o0 = 0; o0 < outputs; o0 += most * widest) {
    const int64_t pass = std::min(outputs - o0, most * widest), count = ceil_div(pass, widest);
    const auto live_of = [&](int64_t p) { return std::min(pass - p * widest, widest); };
    const auto width_of = [&](int64_t p) {
      return panel_width(live_of(p), work.min_tokens(), widest);
    };
    // A few panels are cut, so that all threads pack them.
    const int64_t cuts = count >= threads ? 1 : threads;
    const int64_t slice = ceil_div(c.channels, cuts);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(static)
      for (int64_t i = 0; i < count * cuts; ++i) {
        const int64_t p = i / cuts, begin = std::min(i % cuts * slice, c.channels);
        pack_windows(c, o0 + p * widest, live_of(p), begin, std::min(begin + slice, c.channels),
                     width_of(p), windows + p * depth * widest);
      }
      if (int8) {
        const int64_t parts = widest / 16;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < count * parts; ++i) {
          const int64_t p = i / parts, lane0 = i % parts * 16, width = width_of(p);
          if (lane0 < width)
            lane.quantize(windows + p * depth * widest + lane0, width, inner, 16,
                          quads + p * depth * widest + lane0, scales + p * widest + lane0);
        }
      }
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < chunks * count; ++i) {
        const int64_t chunk = i / count, p = i % count, width = width_of(p);
        const int64_t row0 = work.row0(chunk), rows = work.rows(chunk);
        float* sums = all_sums + omp_get_thread_num() * 2 * sums_size;
        float* finished = sums + sums_size;
        work.run(chunk, (int8 ? quads : windows) + p * depth * widest, width, sums);
        const PanelEpilogue epilogue{c.activation,
                                     int8 ? row_scales + row0 : nullptr,
                                     c.bias ? c.bias + row0 : nullptr,
                                     nullptr,
                                     false,
                                     finished};
        lane.finish({sums, width, int8 ? scales + p * widest : nullptr}, rows, epilogue);
        store_steps(c, finished, width, o0 + p * widest, live_of(p), row0, rows);
      }
    }
  }
}

}  // namespace

void conv1d(const PackedWeight& w, const Conv1d& c, Isa isa) {
  if (c.batch == 0 || c.steps == 0) return;
  const Runs* runs = std::get_if<Runs>(&w);
  const int64_t entries =
      runs ? RunsWork::entries(*runs) : StripsWork::entries(std::get<Strips>(w));
  // Copies of windows are work too.
  const int threads = threads_for((entries + c.channels * c.kernel) * c.batch * c.steps);
  isa = with_float_panels(isa);
  with_panel_work(w, isa, threads,
                  [&](const auto& work) { conv1d_on_panels(work, c, isa, threads); });
}

}  // namespace se
