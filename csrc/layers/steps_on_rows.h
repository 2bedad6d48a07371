// Time steps of few sequences: the lanes of a vector hold units.
#pragma once

#include "layers/direction.h"
#include "ops/spmv.h"

namespace se {

// Every sequence is a row of activations. Each thread reads its rows of the weights once a step.
class StepsOnRows : public Direction {
 public:
  StepsOnRows(const RecurrentNetwork& network, const RecurrentLinears& linears,
              const TimeSteps& steps, const DirectionArrays& arrays, bool backward,
              Capabilities caps)
      : Direction(network, linears, steps, arrays, backward, 1, caps) {}

  // Time steps per input projection.
  static int64_t per_projection(const TimeSteps& steps) {
    return std::max<int64_t>(1, kProjectionTokens / steps.sequences());
  }

  // Memory that the threads share, for projections of `steps` time steps.
  void allocate(Arena& arena, int64_t steps) {
    allocate_states(arena);
    const int64_t batch = steps_.sequences();
    const auto sums = [&](const RecurrentLinear& l) {
      return rounded(with_row_work(*l.weight, caps_, [](const auto& work) { return work.sums(); }));
    };
    hidden_stride_ = sums(l_.hidden);
    hidden_sums_ = arena.take(batch * hidden_stride_);
    projection_stride_ = has_projection() ? sums(l_.projection) : 0;
    projection_sums_ = arena.take(batch * projection_stride_);
    inputs_ = arena.take(steps * batch * n_.rows());
  }

  // A thread's own memory, in floats: prepared activations, their scales, and finished sums.
  int64_t scratch_floats() const {
    return prepared_floats() + rounded(steps_.sequences()) +
           rounded(std::max(n_.rows(), n_.output_size));
  }

  // Multiply-adds of a time step.
  int64_t step_work() const {
    return with_row_work(*l_.hidden.weight, caps_, [](const auto& work) { return work.work(); }) *
           steps_.sequences();
  }

  // The hoisted input projection W_ih x + b_ih of steps [k0, k1), on all threads.
  void project_inputs(int64_t k0, int64_t k1) {
    const auto [first, last] = std::minmax({time(k0), time(k1 - 1)});
    first_token_ = steps_.offsets[first];
    const int64_t tokens = steps_.offsets[last + 1] - first_token_, features = arrays_.input_size;
    const Activations x{arrays_.x + first_token_ * features, DType::f32, features, tokens,
                        features};
    Epilogue e{};
    e.bias = l_.input.bias;
    e.y = inputs_;
    e.y_stride = n_.rows();
    e.dtype = DType::f32;
    std::visit([&](const auto& w) { linear(w, x, e, caps_); }, *l_.input.weight);
  }

  // The projected input of a sequence at step k.
  const float* inputs(int64_t k, int64_t sequence, int64_t row) const {
    return inputs_ + (steps_.offsets[time(k)] + sequence - first_token_) * n_.rows() + row;
  }
  int64_t inputs_stride() const { return 1; }

  // f(sequence, row, rows, sums) for the rows of W_hh h + b_hh that this thread owns: whole unit
  // tiles. sums are null for sequences that have ended.
  template <class F>
  void multiply_hidden(int64_t k, const TeamThread& thread, float* scratch, F f) const {
    multiply(l_.hidden, h_before(k), h_size_, k, n_.tile_rows(), hidden_sums_, hidden_stride_,
             thread, scratch, f);
  }
  // The same for W_hr m.
  template <class F>
  void multiply_projection(int64_t k, const TeamThread& thread, float* scratch, F f) const {
    multiply(l_.projection, m_, c_size_, k, kUnitTile, projection_sums_, projection_stride_, thread,
             scratch, f);
  }

 private:
  int64_t prepared_stride() const { return prepared_bytes(step_features()); }
  int64_t prepared_floats() const { return rounded(kTokens * prepared_stride() / 4); }

  // The product of a weight and the active sequences' x. A thread owns whole tiles of `tile_rows`
  // rows. Where a packing has its rows in order, the thread multiplies exactly these. Otherwise it
  // multiplies some part of the packing, and a barrier follows.
  template <class F>
  void multiply(const RecurrentLinear& linear, const float* x, int64_t x_stride, int64_t k,
                int64_t tile_rows, float* sums, int64_t stride, const TeamThread& thread,
                float* scratch, F f) const {
    const int64_t active = steps_.batch_sizes[time(k)];
    char* prepared = reinterpret_cast<char*>(scratch);
    float* scales = scratch + prepared_floats();
    float* finished = scales + rounded(steps_.sequences());
    with_row_work(*linear.weight, caps_, [&](const auto& work) {
      constexpr int64_t kAtOnce = std::decay_t<decltype(work)>::kAtOnce;
      const int64_t out = work.w.out, prepared_size = prepared_stride();
      const Range tiles = partition(ceil_div(out, tile_rows), thread, [&](int64_t tile) {
        return cost_of_rows(work.w, tile * tile_rows);
      });
      const int64_t row = tiles.begin * tile_rows;
      const int64_t rows = std::min(tiles.end * tile_rows, out) - row;
      const int64_t height = ordered_height(work.w);
      const bool ordered = height && tile_rows % height == 0;
      const Range part = ordered ? Range{std::min(row, out) / height, ceil_div(row + rows, height)}
                                 : Range{work.part(thread.rank, thread.team_size),
                                         work.part(thread.rank + 1, thread.team_size)};
      for (int64_t t0 = 0; t0 < active; t0 += kAtOnce) {
        const int64_t count = std::min(active - t0, kAtOnce);
        for (int64_t t = 0; t < count; ++t)
          scales[t0 + t] = work.prepare(x + (t0 + t) * x_stride, prepared + t * prepared_size);
        work.run(part.begin, part.end, prepared, prepared_size, count, sums + t0 * stride, stride);
      }
      if (!ordered) thread.barrier.wait();
      if (rows <= 0) return;
      const float* row_scales = se::row_scales(work.w);
      for (int64_t b = 0; b < steps_.sequences(); ++b)
        f(b, row, rows,
          b < active ? finish(sums + b * stride + row, scales[b], row_scales, linear.bias, row,
                              rows, finished)
                     : nullptr);
    });
  }

  // Cost of the first rows of a packing. Strips skip zeros; in the other packings all rows cost
  // about the same.
  template <class W>
  static int64_t cost_of_rows(const W&, int64_t rows) {
    return rows;
  }
  static int64_t cost_of_rows(const Strips& w, int64_t rows) {
    return entries_before(w, std::min(ceil_div(rows, w.height), w.strips));
  }

  // Rows of a unit of work of a packing with its rows in order, else 0.
  static int64_t ordered_height(const SellP&) { return 0; }
  static int64_t ordered_height(const Bits&) { return 1; }
  static int64_t ordered_height(const Groups&) { return 1; }
  static int64_t ordered_height(const Tiles&) { return Tiles::kBand; }
  static int64_t ordered_height(const Strips& w) { return w.height; }

  // sums * scale * row_scales + bias, written to `finished` unless nothing changes.
  const float* finish(const float* sums, float scale, const float* row_scales, const float* bias,
                      int64_t row, int64_t rows, float* finished) const {
    if (!row_scales && !bias) return sums;
    Epilogue e{};
    e.row_scales = row_scales ? row_scales + row : nullptr;
    e.bias = bias ? bias + row : nullptr;
    e.y = finished;
    e.dtype = DType::f32;
    panel_io_.store_token(sums, scale, 0, rows, e);
    return finished;
  }

  int64_t hidden_stride_, projection_stride_, first_token_ = 0;
  float *hidden_sums_, *projection_sums_, *inputs_;
};

}  // namespace se
