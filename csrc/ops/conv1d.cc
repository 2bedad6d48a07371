#include "ops/conv1d.h"

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "ops/spmm.h"
#include "ops/workspace.h"

namespace se {
namespace {

constexpr int64_t kWidest = 64, kCopied = 16;
thread_local Workspace window_memory, line_memory, quad_memory, scale_memory, sum_memory;

// Consecutive steps of one sequence, in the lanes of a panel from `lane` on. The inputs of their
// windows, of one channel, begin at `at` in the thread's line buffer.
struct Segment {
  int64_t sequence, step, lane, count, at;
};

int64_t reach(const Conv1d& c) { return (c.kernel - 1) * c.dilation + 1; }

// The segments of outputs [first, first + live), counted over all sequences in turn.
struct Segments {
  Segment segments[kWidest];
  int64_t size = 0;

  Segments(const Conv1d& c, int64_t first, int64_t live) {
    int64_t sequence = first / c.steps, step = first % c.steps, at = 0;
    for (int64_t lane = 0; lane < live; ++sequence, step = 0) {
      const int64_t count = std::min(c.steps - step, live - lane);
      segments[size++] = {sequence, step, lane, count, at};
      at += (count - 1) * c.stride + reach(c);
      lane += count;
    }
  }
  const Segment* begin() const { return segments; }
  const Segment* end() const { return segments + size; }
};

// Floats of a line buffer, including those past the end that copy_lanes may read.
int64_t line_size(const Conv1d& c) { return kWidest * (c.stride + reach(c)) + kCopied; }

// to[i] = x[from + i], or zero outside of x [length].
void copy_padded(const float* x, int64_t length, int64_t from, int64_t count, float* to) {
  const int64_t begin = std::clamp<int64_t>(-from, 0, count);
  const int64_t end = std::clamp<int64_t>(length - from, begin, count);
  for (int64_t i = 0; i < begin; ++i) to[i] = 0;
  if (begin < end) std::memcpy(to + begin, x + (from + begin), (end - begin) * sizeof(float));
  for (int64_t i = end; i < count; ++i) to[i] = 0;
}

// to[i] = from[i * stride]. With `room`, up to 15 more floats are overwritten with any value.
inline void copy_lanes(const float* from, int64_t stride, int64_t count, bool room, float* to) {
  if (stride == 1 && room) {  // no call and no branch on the count
    for (int64_t i = 0; i < count; i += kCopied)
      std::memcpy(to + i, from + i, kCopied * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < count; ++i) to[i] = from[i * stride];
}

// The panel [channels x kernel][width] of the windows of outputs [first, first + live): row (c, i)
// is channel c from tap i on. Writes only rows of channels [begin, end); `line` is the line buffer
// of the calling thread.
void pack_windows(const Conv1d& c, int64_t first, int64_t live, int64_t begin, int64_t end,
                  int64_t width, float* line, float* panel) {
  if (begin == end) return;
  const Segments segments(c, first, live);
  float* row = panel + begin * c.kernel * width;
  float* last = panel + (end * c.kernel - 1) * width;
  for (int64_t channel = begin; channel < end; ++channel) {
    for (const Segment& p : segments)
      copy_padded(c.x + p.sequence * c.x_sequence + channel * c.x_channel, c.length,
                  p.step * c.stride - c.left, (p.count - 1) * c.stride + reach(c), line + p.at);
    for (int64_t tap = 0; tap < c.kernel; ++tap, row += width) {
      // Floats written past a segment are overwritten by the next segment or row.
      for (const Segment& p : segments)
        copy_lanes(line + p.at + tap * c.dilation, c.stride, p.count, row != last, row + p.lane);
      if (live < width) std::fill(row + live, row + width, 0.0f);
    }
  }
}

void store_steps(const Conv1d& c, const float* rows, int64_t width, int64_t first, int64_t live,
                 int64_t row0, int64_t count) {
  const Segments segments(c, first, live);
  for (int64_t r = 0; r < count; ++r, rows += width)
    for (const Segment& p : segments)
      std::memcpy(c.y + p.sequence * c.y_sequence + (row0 + r) * c.y_channel + p.step,
                  rows + p.lane, p.count * sizeof(float));
}

template <class Work>
void conv1d_on_panels(const Work& work, const Conv1d& c, Capabilities caps, int threads) {
  const LayerPanelKernels& lane = layer_panels(caps);
  const int64_t widest = work.max_tokens(), chunks = work.chunks(), outputs = c.batch * c.steps;
  const int64_t inner = c.channels * c.kernel, depth = std::max<int64_t>(inner, 1);
  const float* row_scales = work.row_scales();
  const bool int8 = row_scales != nullptr;
  const int64_t most = std::min(kPanelsPerPass, ceil_div(outputs, widest));
  // All memory is allocated before the threads start: an exception must not leave a parallel
  // region.
  const int64_t sums_size = work.sums() * widest;
  float* all_sums = sum_memory.get<float>(threads * 2 * sums_size);
  float* windows = window_memory.get<float>(most * depth * widest);
  float* lines = line_memory.get<float>(threads * line_size(c));
  float* quads = int8 ? quad_memory.get<float>(most * depth * widest) : nullptr;
  float* scales = int8 ? scale_memory.get<float>(most * widest) : nullptr;

  for (int64_t o0 = 0; o0 < outputs; o0 += most * widest) {
    const int64_t pass = std::min(outputs - o0, most * widest), count = ceil_div(pass, widest);
    const auto live_of = [&](int64_t p) { return std::min(pass - p * widest, widest); };
    const auto width_of = [&](int64_t p) {
      return panel_width(live_of(p), work.min_tokens(), widest);
    };
    // With fewer panels than threads, the channels of each panel are divided among the threads.
    const int64_t cuts = count >= threads ? 1 : threads;
    const int64_t slice = ceil_div(c.channels, cuts);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(static)
      for (int64_t i = 0; i < count * cuts; ++i) {
        const int64_t p = i / cuts, begin = std::min(i % cuts * slice, c.channels);
        pack_windows(c, o0 + p * widest, live_of(p), begin, std::min(begin + slice, c.channels),
                     width_of(p), lines + omp_get_thread_num() * line_size(c),
                     windows + p * depth * widest);
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

void conv1d(const PackedWeight& w, const Conv1d& c, Capabilities caps) {
  if (c.batch == 0 || c.steps == 0) return;
  const Runs* runs = std::get_if<Runs>(&w);
  const int64_t entries =
      runs ? RunsWork::entries(*runs) : StripsWork::entries(std::get<Strips>(w));
  // Copying windows counts as work.
  const int threads = threads_for((entries + c.channels * c.kernel) * c.batch * c.steps);
  with_panel_work(w, caps, threads,
                  [&](const auto& work) { conv1d_on_panels(work, c, caps, threads); });
}

}  // namespace se
