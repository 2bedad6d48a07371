// Time steps of many sequences: the lanes of a panel hold sequences.
#pragma once

#include <omp.h>

#include "layers/direction.h"
#include "ops/spmm.h"

namespace se {

class StepsOnPanels : public Direction {
 private:
  // f(work) with chunks of whole tiles of `tile_rows` rows.
  template <class F>
  auto with_chunks(const RecurrentLinear& linear, int64_t tile_rows, F f) const {
    return with_panel_work(*linear.weight, caps_, threads_, f, tile_rows);
  }

 public:
  StepsOnPanels(const RecurrentNetwork& network, const RecurrentLinears& linears,
                const TimeSteps& steps, const DirectionArrays& arrays, bool backward,
                Capabilities caps)
      : Direction(network, linears, steps, arrays, backward, width_for(linears, steps, caps), caps),
        layer_panels_(layer_panels(caps_)),
        threads_(omp_get_max_threads()),
        input_width_(linear_panel_width(*l_.input.weight, kMaxWidth, caps_)),
        lanes_per_step_(panels_ == 1 ? steps.sequences() : width_),
        steps_per_panel_(input_width_ / lanes_per_step_) {}

  // Time steps per input projection.
  static int64_t per_projection(const TimeSteps& steps) {
    return std::max<int64_t>(4, kProjectionTokens / std::max<int64_t>(16, steps.sequences()));
  }

  // Memory that the threads share, for projections of `steps` time steps.
  void allocate(Arena& arena, int64_t steps) {
    allocate_states(arena);
    const int64_t input_panels = ceil_div(steps, steps_per_panel_) * panels_;
    x_ = arena.take(input_panels * arrays_.input_size * input_width_);
    // The cell reads width_ lanes of a row, also past the last step of the last panel.
    inputs_ = arena.take(input_panels * n_.rows() * input_width_ + width_);
    staged_ = arena.take(threads_ * input_width_ * arrays_.input_size);
  }

  // A thread's own memory, in floats: sums, finished sums, and quantised panels with their scales.
  int64_t scratch_floats() const { return (2 * max_sums() + panels_ * (max_quads() + 1)) * width_; }

  // Multiply-adds of a time step.
  int64_t step_work() const {
    return with_chunks(l_.hidden, n_.tile_rows(), [&](const auto& work) {
      return std::decay_t<decltype(work)>::entries(work.w) * panels_ * width_;
    });
  }

  // The hoisted input projection W_ih x + b_ih of steps [k0, k1), on all threads.
  void project_inputs(int64_t k0, int64_t k1) {
    first_step_ = k0;
    const int64_t input_panels = ceil_div(k1 - k0, steps_per_panel_) * panels_;
    const int64_t features = arrays_.input_size;
#pragma omp parallel for schedule(static) num_threads(threads_)
    for (int64_t i = 0; i < input_panels; ++i) {
      float* rows = staged_ + omp_get_thread_num() * input_width_ * features;
      for (int64_t l = 0; l < input_width_; ++l) {
        const int64_t step = l / lanes_per_step_, k = k0 + i / panels_ * steps_per_panel_ + step;
        const int64_t b = i % panels_ * width_ + l % lanes_per_step_;
        if (step < steps_per_panel_ && k < k1 && b < steps_.batch_sizes[time(k)])
          std::copy_n(arrays_.x + (steps_.offsets[time(k)] + b) * features, features,
                      rows + l * features);
        else
          std::fill_n(rows + l * features, features, 0.0f);
      }
      panel_io_.pack(rows, DType::f32, features, input_width_, features, input_width_,
                     x_ + i * features * input_width_, Panel::floats);
    }
    linear_on_panels(
        *l_.input.weight,
        {x_, input_panels, features, input_width_, l_.input.bias, Activation::none, inputs_},
        caps_);
  }

  // The projected inputs of a panel's sequences at step k: the first of width_ lanes.
  const float* inputs(int64_t k, int64_t panel, int64_t row) const {
    const int64_t step = k - first_step_;
    const int64_t input_panel = step / steps_per_panel_ * panels_ + panel;
    return inputs_ + (input_panel * n_.rows() + row) * input_width_ +
           step % steps_per_panel_ * lanes_per_step_;
  }
  int64_t inputs_stride() const { return input_width_; }

  // f(panel, row, rows, sums) for the rows of W_hh h + b_hh that this thread owns: whole unit
  // tiles. sums are null where all sequences of the panel have ended.
  template <class F>
  void multiply_hidden(int64_t k, const TeamThread& thread, float* scratch, F f) const {
    multiply(l_.hidden, h_before(k), n_.output_size, h_size_, k, n_.tile_rows(), thread, scratch,
             f);
  }
  // The same for W_hr m.
  template <class F>
  void multiply_projection(int64_t k, const TeamThread& thread, float* scratch, F f) const {
    multiply(l_.projection, m_, n_.hidden_size, c_size_, k, 1, thread, scratch, f);
  }

 private:
  static constexpr int64_t kMaxWidth = 64;

  // The narrowest panels that hold all sequences, or the widest that all weights can multiply.
  static int64_t width_for(const RecurrentLinears& l, const TimeSteps& steps, Capabilities caps) {
    int64_t widest = kMaxWidth;
    for (const RecurrentLinear& linear : {l.input, l.hidden, l.projection})
      if (linear) widest = std::min(widest, linear_panel_width(*linear.weight, kMaxWidth, caps));
    return panel_width(steps.sequences(), 16, widest);
  }

  int64_t max_sums() const {
    const auto sums = [](const auto& work) { return work.sums(); };
    const int64_t hidden = with_chunks(l_.hidden, n_.tile_rows(), sums);
    return has_projection() ? std::max(hidden, with_chunks(l_.projection, 1, sums)) : hidden;
  }
  int64_t max_quads() const { return ceil_div(step_features(), 4); }

  // The product of a weight [.., features] and x, panels of x_rows rows.
  template <class F>
  void multiply(const RecurrentLinear& linear, const float* x, int64_t features, int64_t x_rows,
                int64_t k, int64_t tile_rows, const TeamThread& thread, float* scratch, F f) const {
    with_chunks(linear, tile_rows, [&](const auto& work) {
      const int64_t in = work.w.in;  // counts quads for int8
      const float* row_scales = work.row_scales();
      float *sums = scratch, *finished = sums + max_sums() * width_;
      float *quads = finished + max_sums() * width_,
            *scales = quads + panels_ * max_quads() * width_;
      const Range chunks =
          partition(work.chunks(), thread, [&](int64_t c) { return work.entries_before(c); });
      // Every thread quantises all of x itself: that costs less than a barrier.
      for (int64_t p = 0; row_scales && chunks.begin < chunks.end && p < panels_; ++p)
        for (int64_t l = 0; active_lanes(k, p) && l < width_; l += 16)
          layer_panels_.quantize(x + p * x_rows * width_ + l, width_, features, 16,
                                 quads + p * in * width_ + l, scales + p * width_ + l);
      for (int64_t c = chunks.begin; c < chunks.end; ++c)
        for (int64_t p = 0; p < panels_; ++p) {
          const int64_t row = work.row0(c), rows = work.rows(c);
          if (!active_lanes(k, p)) {
            f(p, row, rows, nullptr);
            continue;
          }
          work.run(c, row_scales ? quads + p * in * width_ : x + p * x_rows * width_, width_, sums);
          if (row_scales || linear.bias)
            layer_panels_.finish(
                {sums, width_, row_scales ? scales + p * width_ : nullptr}, rows,
                {Activation::none, row_scales ? row_scales + row : nullptr,
                 linear.bias ? linear.bias + row : nullptr, nullptr, false, finished});
          f(p, row, rows, row_scales || linear.bias ? finished : sums);
        }
    });
  }

  const LayerPanelKernels& layer_panels_;
  // Read once, outside of parallel regions: the chunks depend on it and must not change.
  const int threads_;
  // Panels of the input projection are as wide as possible and hold several steps of few sequences.
  const int64_t input_width_, lanes_per_step_, steps_per_panel_;
  int64_t first_step_ = 0;
  float *x_, *inputs_, *staged_;
};

}  // namespace se
