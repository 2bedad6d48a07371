// Recurrent steps of many sequences.
#pragma once

#include <omp.h>

#include "layers/direction.h"
#include "ops/spmm.h"

namespace se {

// Many sequences: each has a lane of a panel.
class StepsOnPanels : public Direction {
 private:
  // Chunks of whole blocks of `block` rows.
  template <class F>
  auto with_work(const LayerLinear& linear, int64_t block, F f) const {
    return with_panel_work(*linear.panels, caps_, threads_, f, block);
  }

 public:
  StepsOnPanels(const Recurrent& network, const RecurrentLinears& linears, const Steps& steps,
                const Flow& flow, bool backward, Capabilities caps)
      : Direction(network, linears, steps, flow, backward, caps),
        layer_panels_(layer_panels(caps_)),
        threads_(omp_get_max_threads()) {
    // Panels of the input projection are as wide as can be, and hold several steps if sequences are
    // few.
    wide_ = linear_panel_width(*l_.input.panels, 64, caps_);
    int64_t widest = std::min(wide_, linear_panel_width(*l_.hidden.panels, 64, caps_));
    if (projects()) widest = std::min(widest, linear_panel_width(*l_.project.panels, 64, caps_));
    width_ = panel_width(steps.sequences(), 16, widest);
    count_ = ceil_div(steps.sequences(), width_);
    lanes_a_step_ = count_ == 1 ? steps.sequences() : width_;
    steps_a_panel_ = wide_ / lanes_a_step_;
  }

  static int64_t hoist(const Steps& steps) {
    return std::max<int64_t>(4, kHoisted / std::max<int64_t>(16, steps.sequences()));
  }

  void lay_out(Arena& shared, int64_t steps) {
    h_rows_ = std::max(rounded(n_.out), projects() ? 0 : n_.blocks() * 16);
    c_rows_ = n_.blocks() * 16;
    h_[0] = shared.take(count_ * h_rows_ * width_);
    h_[1] = shared.take(count_ * h_rows_ * width_);
    c_ = shared.take(count_ * c_rows_ * width_);
    m_ = shared.take(projects() ? count_ * c_rows_ * width_ : 0);
    const int64_t panels = ceil_div(steps, steps_a_panel_) * count_;
    x_ = shared.take(panels * flow_.in * wide_);
    // The last step of a panel may be read as if it were as wide as others.
    inputs_ = shared.take(panels * n_.rows() * wide_ + width_);
    staged_ = shared.take(threads_ * wide_ * flow_.in);
  }
  // sums, sums with scales and bias, and a panel of quads with its scales.
  int64_t own_floats() const {
    const int64_t quads = ceil_div(std::max(n_.out, n_.units), 4);
    return (2 * most_sums() + count_ * (quads + 1)) * width_;
  }
  int64_t work() const {
    return with_work(l_.hidden, n_.block_rows(), [&](const auto& work) {
      return std::decay_t<decltype(work)>::entries(work.w) * count_ * width_;
    });
  }

  void begin() {
    std::fill_n(h_[0], count_ * h_rows_ * width_, 0.0f);
    std::fill_n(h_[1], count_ * h_rows_ * width_, 0.0f);
    std::fill_n(c_, count_ * c_rows_ * width_, 0.0f);
    for (int64_t b = 0; b < steps_.sequences(); ++b) {
      for (int64_t u = 0; flow_.h0 && u < n_.out; ++u)
        *lane(h_[0], h_rows_, u, b) = flow_.h0[b * n_.out + u];
      for (int64_t u = 0; flow_.c0 && u < n_.units; ++u)
        *lane(c_, c_rows_, u, b) = flow_.c0[b * n_.units + u];
    }
  }
  void end() const {
    for (int64_t b = 0; b < steps_.sequences(); ++b) {
      for (int64_t u = 0; u < n_.out; ++u)
        flow_.hn[b * n_.out + u] = *lane(h_[steps_.count() % 2], h_rows_, u, b);
      for (int64_t u = 0; flow_.cn && u < n_.units; ++u)
        flow_.cn[b * n_.units + u] = *lane(c_, c_rows_, u, b);
    }
  }

  void project(int64_t k0, int64_t k1) {
    first_step_ = k0;
    const int64_t panels = ceil_div(k1 - k0, steps_a_panel_) * count_;
#pragma omp parallel for schedule(static) num_threads(threads_)
    for (int64_t i = 0; i < panels; ++i) {
      float* rows = staged_ + omp_get_thread_num() * wide_ * flow_.in;
      for (int64_t l = 0; l < wide_; ++l) {
        const int64_t step = l / lanes_a_step_, k = k0 + i / count_ * steps_a_panel_ + step;
        const int64_t b = i % count_ * width_ + l % lanes_a_step_;
        if (step < steps_a_panel_ && k < k1 && b < steps_.sizes[time(k)])
          std::copy_n(flow_.x + (steps_.offsets[time(k)] + b) * flow_.in, flow_.in,
                      rows + l * flow_.in);
        else
          std::fill_n(rows + l * flow_.in, flow_.in, 0.0f);
      }
      panel_io_.pack(rows, DType::f32, flow_.in, wide_, flow_.in, wide_, x_ + i * flow_.in * wide_,
                     DType::f32);
    }
    linear_on_panels(*l_.input.panels,
                     {x_, panels, flow_.in, wide_, l_.input.bias, Activation::none, inputs_},
                     caps_);
  }

  void step(int64_t k, const Worker& worker, float* own) const {
    const int64_t t = time(k), live = steps_.sizes[t];
    const float* from = h_[k % 2];
    float* to = h_[(k + 1) % 2];
    const int64_t wide_row = ((k - first_step_) / steps_a_panel_) * count_ * n_.rows();
    const int64_t wide_lane = (k - first_step_) % steps_a_panel_ * lanes_a_step_;
    product(l_.hidden, from, h_rows_, n_.block_rows(), live, worker, own,
            [&](int64_t p, int64_t row, int64_t rows, const float* sums) {
              const int64_t unit = row / n_.block_rows() * 16, units = rows / n_.block_rows() * 16;
              const int64_t at = (p * c_rows_ + unit) * width_, h = (p * h_rows_ + unit) * width_;
              const int64_t here = live_of(live, p);
              if (!here) {
                if (!projects()) std::copy_n(from + h, units * width_, to + h);
                return;
              }
              CellStep s{};
              s.cell = n_.cell;
              s.blocks = units / 16;
              s.width = width_;
              s.live = here;
              s.sums = sums;
              s.inputs = inputs_ + (wide_row + p * n_.rows() + row) * wide_ + wide_lane;
              s.inputs_stride = wide_;
              s.c = c_ + at;
              s.h = projects() ? m_ + at : from + h;
              s.y = projects() ? m_ + at : to + h;
              recurrent_cell_.step(s);
              if (!projects()) give(t, p, here, to + h, unit, std::min(units, n_.units - unit));
            });
    if (projects()) {
      worker.barrier.wait();
      product(l_.project, m_, c_rows_, 1, live, worker, own,
              [&](int64_t p, int64_t row, int64_t rows, const float* sums) {
                const int64_t at = (p * h_rows_ + row) * width_, here = live_of(live, p);
                for (int64_t i = 0; i < rows; ++i)
                  for (int64_t l = 0; l < width_; ++l)
                    to[at + i * width_ + l] = (l < here ? sums : from + at)[i * width_ + l];
                if (here) give(t, p, here, to + at, row, rows);
              });
    }
    worker.barrier.wait();
  }

 private:
  float* lane(float* panels, int64_t rows, int64_t row, int64_t b) const {
    return panels + (b / width_ * rows + row) * width_ + b % width_;
  }
  int64_t live_of(int64_t live, int64_t p) const {
    return std::clamp<int64_t>(live - p * width_, 0, width_);
  }
  void give(int64_t t, int64_t p, int64_t live, const float* h, int64_t unit, int64_t units) const {
    Epilogue e{};
    e.y = flow_.y + (steps_.offsets[t] + p * width_) * flow_.y_stride;
    e.y_stride = flow_.y_stride;
    e.dtype = DType::f32;
    if (units > 0) panel_io_.store({h, width_, nullptr}, live, unit, units, e);
  }

  int64_t most_sums() const {
    const auto sums = [](const auto& work) { return work.sums(); };
    const int64_t hidden = with_work(l_.hidden, n_.block_rows(), sums);
    return projects() ? std::max(hidden, with_work(l_.project, 1, sums)) : hidden;
  }

  // f(panel, row, rows, sums) for this thread's chunks of rows; sums are null where no lane is
  // live.
  template <class F>
  void product(const LayerLinear& linear, const float* x, int64_t x_rows, int64_t block,
               int64_t live, const Worker& worker, float* own, F f) const {
    with_work(linear, block, [&](const auto& work) {
      const int64_t chunks = work.chunks(), in = work.w.in;  // in counts quads for int8
      const float* row_scales = work.row_scales();
      float *sums = own, *ready = sums + most_sums() * width_,
            *quads = ready + most_sums() * width_;
      float* scales = quads + count_ * ceil_div(std::max(n_.out, n_.units), 4) * width_;
      const auto cost = [&](int64_t c) { return work.entries_before(c); };
      const int64_t c0 = share(chunks, worker.me, worker.threads, cost);
      const int64_t c1 = share(chunks, worker.me + 1, worker.threads, cost);
      // What is so little is done by each thread for itself.
      for (int64_t p = 0; row_scales && c0 < c1 && p < count_; ++p)
        for (int64_t l = 0; live_of(live, p) && l < width_; l += 16)
          layer_panels_.quantize(x + p * x_rows * width_ + l, width_,
                                 &linear == &l_.project ? n_.units : n_.out, 16,
                                 quads + p * in * width_ + l, scales + p * width_ + l);
      for (int64_t c = c0; c < c1; ++c)
        for (int64_t p = 0; p < count_; ++p) {
          const int64_t row = work.row0(c), rows = work.rows(c);
          if (!live_of(live, p)) {
            f(p, row, rows, nullptr);
            continue;
          }
          work.run(c, row_scales ? quads + p * in * width_ : x + p * x_rows * width_, width_, sums);
          const float* found = sums;
          if (row_scales || linear.bias) {
            layer_panels_.finish(
                {sums, width_, row_scales ? scales + p * width_ : nullptr}, rows,
                {Activation::none, row_scales ? row_scales + row : nullptr,
                 linear.bias ? linear.bias + row : nullptr, nullptr, false, ready});
            found = ready;
          }
          f(p, row, rows, found);
        }
    });
  }

  const LayerPanelKernels& layer_panels_;
  const int threads_;  // asked once: chunks must be the same whoever asks, inside a region or out
  int64_t wide_, width_, count_, lanes_a_step_, steps_a_panel_;
  int64_t h_rows_, c_rows_, first_step_ = 0;
  float *h_[2], *c_, *m_, *x_, *inputs_, *staged_;
};

}  // namespace se
