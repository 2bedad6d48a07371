// Recurrent steps of a few sequences.
#pragma once

#include "layers/direction.h"
#include "ops/spmv.h"

namespace se {

// A few sequences: the lanes hold units, and every thread reads its share of the
// weights.
class StepsOnRows : public Direction {
 public:
  using Direction::Direction;

  // Steps whose inputs are projected together.
  static int64_t hoist(const Steps& steps) {
    return std::max<int64_t>(1, kHoisted / steps.sequences());
  }

  void lay_out(Arena& shared, int64_t steps) {
    const int64_t batch = steps_.sequences();
    h_stride_ = rounded(std::max(n_.out, projects() ? 0 : n_.blocks() * 16));
    c_stride_ = n_.blocks() * 16;
    h_[0] = shared.take(batch * h_stride_);
    h_[1] = shared.take(batch * h_stride_);
    c_ = shared.take(batch * c_stride_);
    m_ = shared.take(projects() ? batch * c_stride_ : 0);
    const auto sums = [&](const LayerLinear& l) {
      return rounded(with_row_work(*l.rows, caps_, [](const auto& work) { return work.sums(); }));
    };
    sums_stride_ = sums(l_.hidden);
    sums_ = shared.take(batch * sums_stride_);
    project_stride_ = projects() ? sums(l_.project) : 0;
    project_ = shared.take(batch * project_stride_);
    inputs_ = shared.take(steps * batch * n_.rows());
  }
  int64_t own_floats() const {
    return rounded(kTokens * prepared_stride() / 4) + rounded(steps_.sequences()) +
           rounded(std::max(n_.rows(), n_.out));
  }
  int64_t work() const {
    const auto one = [&](const LayerLinear& l) {
      return with_row_work(*l.rows, caps_, [](const auto& work) { return work.work(); });
    };
    return one(l_.hidden) * steps_.sequences();
  }

  void begin() {
    const int64_t batch = steps_.sequences();
    // Units past the last are computed, too, and must be numbers.
    std::fill_n(h_[0], batch * h_stride_, 0.0f);
    std::fill_n(h_[1], batch * h_stride_, 0.0f);
    std::fill_n(c_, batch * c_stride_, 0.0f);
    for (int64_t b = 0; b < batch; ++b) {
      if (flow_.h0) std::copy_n(flow_.h0 + b * n_.out, n_.out, h_[0] + b * h_stride_);
      if (flow_.c0) std::copy_n(flow_.c0 + b * n_.units, n_.units, c_ + b * c_stride_);
    }
  }
  void end() const {
    const float* h = h_[steps_.count() % 2];
    for (int64_t b = 0; b < steps_.sequences(); ++b) {
      std::copy_n(h + b * h_stride_, n_.out, flow_.hn + b * n_.out);
      if (flow_.cn) std::copy_n(c_ + b * c_stride_, n_.units, flow_.cn + b * n_.units);
    }
  }

  // inputs_ = W_ih x + b_ih of steps [k0, k1); by all threads.
  void project(int64_t k0, int64_t k1) {
    const int64_t a = time(k0), b = time(k1 - 1);
    first_token_ = steps_.offsets[std::min(a, b)];
    const int64_t tokens = steps_.offsets[std::max(a, b) + 1] - first_token_;
    const Activations x{flow_.x + first_token_ * flow_.in, DType::f32, flow_.in, tokens, flow_.in};
    Epilogue e{};
    e.bias = l_.input.bias;
    e.y = inputs_;
    e.y_stride = n_.rows();
    e.dtype = DType::f32;
    const bool few = l_.input.rows && (tokens <= kRowTokens || !l_.input.panels);
    std::visit([&](const auto& w) { linear(w, x, e, caps_); },
               few ? *l_.input.rows : *l_.input.panels);
  }

  void step(int64_t k, const Worker& worker, float* own) const {
    const int64_t t = time(k), live = steps_.sizes[t], batch = steps_.sequences();
    const float* from = h_[k % 2];
    float* to = h_[(k + 1) % 2];
    float* scales = own + rounded(kTokens * prepared_stride() / 4);
    float* ready = scales + rounded(steps_.sequences());
    const BlockRange mine = product(l_.hidden, from, h_stride_, live, n_.block_rows(), sums_,
                                    sums_stride_, worker, own, scales);
    const int64_t row = mine.begin * n_.block_rows(), unit = mine.begin * 16;
    const int64_t rows = mine.end * n_.block_rows() - row, units = mine.end * 16 - unit;
    for (int64_t b = 0; b < batch; ++b) {
      if (units <= 0) break;
      if (b >= live) {
        if (!projects()) std::copy_n(from + b * h_stride_ + unit, units, to + b * h_stride_ + unit);
        continue;
      }
      CellStep s{};
      s.cell = n_.cell;
      s.blocks = mine.end - mine.begin;
      s.width = s.live = s.inputs_stride = 1;
      s.sums = scaled(l_.hidden, sums_ + b * sums_stride_ + row, scales[b], row, rows, ready);
      s.inputs = inputs_ + (steps_.offsets[t] + b - first_token_) * n_.rows() + row;
      s.c = c_ + b * c_stride_ + unit;
      // A projection makes h of what the cells leave in m.
      s.h = projects() ? m_ + b * c_stride_ + unit : from + b * h_stride_ + unit;
      s.y = projects() ? m_ + b * c_stride_ + unit : to + b * h_stride_ + unit;
      recurrent_cell_.step(s);
      if (!projects()) give(t, b, to, unit, own_units(mine));
    }
    if (projects()) project_states(t, live, from, to, worker, own, scales);
    worker.barrier.wait();
  }

 private:
  int64_t prepared_stride() const { return prepared_bytes(std::max(n_.out, n_.units)); }

  void give(int64_t t, int64_t b, const float* h, int64_t unit, int64_t units) const {
    std::copy_n(h + b * h_stride_ + unit, units,
                flow_.y + (steps_.offsets[t] + b) * flow_.y_stride + unit);
  }

  // h = W_hr m, where m are the units that the cells made.
  void project_states(int64_t t, int64_t live, const float* from, float* to, const Worker& worker,
                      float* own, float* scales) const {
    worker.barrier.wait();
    float* ready = scales + rounded(steps_.sequences());
    const BlockRange mine = product(l_.project, m_, c_stride_, live, 16, project_, project_stride_,
                                    worker, own, scales);
    const int64_t row = mine.begin * 16, rows = std::min(mine.end * 16, n_.out) - row;
    for (int64_t b = 0; b < steps_.sequences() && rows > 0; ++b) {
      const float* h = b < live ? scaled(l_.project, project_ + b * project_stride_ + row,
                                         scales[b], row, rows, ready)
                                : from + b * h_stride_ + row;
      std::copy_n(h, rows, to + b * h_stride_ + row);
      if (b < live) give(t, b, to, row, rows);
    }
  }

  // Which blocks of `block` rows this thread owns: sums of these rows are there when it returns. A
  // packing with rows in order is split there; else all threads must have done their part.
  BlockRange product(const LayerLinear& linear, const float* x, int64_t x_stride, int64_t tokens,
                     int64_t block, float* sums, int64_t stride, const Worker& worker, float* own,
                     float* scales) const {
    return with_row_work(*linear.rows, caps_, [&](const auto& work) {
      constexpr int64_t kAtOnce = std::decay_t<decltype(work)>::kAtOnce;
      const int64_t blocks = ceil_div(work.w.out, block), prepared = prepared_stride();
      const auto cost = [&](int64_t b) { return cost_of_rows(work.w, b * block); };
      const BlockRange mine{share(blocks, worker.me, worker.threads, cost),
                            share(blocks, worker.me + 1, worker.threads, cost)};
      const int64_t height = unit_height(work.w);
      const bool ordered = height && block % height == 0;
      const auto unit = [&](int64_t b) { return std::min(b * block, work.w.out) / height; };
      const BlockRange part =
          ordered ? BlockRange{unit(mine.begin),
                               ceil_div(std::min(mine.end * block, work.w.out), height)}
                  : BlockRange{work.part(worker.me, worker.threads),
                               work.part(worker.me + 1, worker.threads)};
      for (int64_t t0 = 0; t0 < tokens; t0 += kAtOnce) {
        const int64_t count = std::min(tokens - t0, kAtOnce);
        for (int64_t t = 0; t < count; ++t)
          scales[t0 + t] =
              work.prepare(x + (t0 + t) * x_stride, reinterpret_cast<char*>(own) + t * prepared);
        work.run(part.begin, part.end, reinterpret_cast<char*>(own), prepared, count,
                 sums + t0 * stride, stride);
      }
      if (!ordered) worker.barrier.wait();
      return mine;
    });
  }

  // What the first rows of a packing cost: a zero as much as any weight, but in strips, which skip
  // it.
  template <class W>
  static int64_t cost_of_rows(const W&, int64_t rows) {
    return rows;
  }
  static int64_t cost_of_rows(const Strips& w, int64_t rows) {
    return entries_before(w, std::min(ceil_div(rows, w.height), w.strips));
  }

  // BlockRange of a unit of work, if they are in order; 0 if not.
  static int64_t unit_height(const SellP&) { return 0; }
  static int64_t unit_height(const Bits&) { return 1; }
  static int64_t unit_height(const Groups&) { return 1; }
  static int64_t unit_height(const Strips& w) { return w.height; }

  // sums x scales + bias, made in `ready` unless there is nothing to do.
  const float* scaled(const LayerLinear& linear, const float* sums, float scale, int64_t row,
                      int64_t rows, float* ready) const {
    Epilogue e{};
    e.row_scales =
        with_row_work(*linear.rows, caps_, [](const auto& work) { return row_scales(work.w); });
    if (!e.row_scales && !linear.bias) return sums;
    if (e.row_scales) e.row_scales += row;
    e.bias = linear.bias ? linear.bias + row : nullptr;
    e.y = ready;
    e.dtype = DType::f32;
    panel_io_.store_token(sums, scale, 0, rows, e);
    return ready;
  }

  int64_t h_stride_, c_stride_, sums_stride_, project_stride_, first_token_ = 0;
  float *h_[2], *c_, *m_, *sums_, *project_, *inputs_;
};

}  // namespace se
