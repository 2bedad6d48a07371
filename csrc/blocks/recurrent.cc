#include "blocks/recurrent.h"

#include <omp.h>

#include <algorithm>
#include <numeric>

#include "core/barrier.h"
#include "ops/spmm.h"
#include "ops/spmv.h"

namespace se {
namespace {

// Tokens whose inputs are projected together: enough to read the input weights seldom.
constexpr int64_t kHoisted = 256;

thread_local Workspace shared_memory, thread_memory, second_memory;

// The steps of a network, looked at from either end.
struct Steps {
  const std::vector<int64_t>& sizes;
  std::vector<int64_t> offsets;  // of the first token of each step

  explicit Steps(const std::vector<int64_t>& s) : sizes(s), offsets(s.size() + 1) {
    std::partial_sum(s.begin(), s.end(), offsets.begin() + 1);
  }
  int64_t count() const { return static_cast<int64_t>(sizes.size()); }
  int64_t sequences() const { return sizes[0]; }
};

// What a layer reads and writes, row-major.
struct Flow {
  const float* x;
  int64_t in;
  float* y;  // where this direction's features begin
  int64_t y_stride;
  const float *h0, *c0;
  float *hn, *cn;
};

// Which thread of how many, and where they meet.
struct Worker {
  int64_t me, threads;
  SpinBarrier& barrier;
};

struct Rows {
  int64_t begin, end;
};

// The first of `count` items that thread i of n takes, where before(k) is what the first k cost.
template <class F>
int64_t share(int64_t count, int64_t i, int64_t n, F before) {
  if (i == n) return count;
  const int64_t goal = before(count) * i / n;
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    before(middle) < goal ? low = middle + 1 : high = middle;
  }
  return low;
}

// One direction of a layer. Subclasses differ in how sequences lie: one a row, or one a lane.
class Direction {
 public:
  Direction(const Recurrent& network, const RecurrentLinears& linears, const Steps& steps,
            const Flow& flow, bool backward, Isa isa)
      : n_(network),
        l_(linears),
        steps_(steps),
        flow_(flow),
        backward_(backward),
        isa_(isa),
        cells_(cells(isa)),
        panels_(panels(isa)) {}

 protected:
  int64_t time(int64_t k) const { return backward_ ? steps_.count() - 1 - k : k; }
  int64_t own_units(Rows blocks) const {
    return std::min(blocks.end * 16, n_.units) - blocks.begin * 16;
  }
  bool projects() const { return static_cast<bool>(l_.project); }

  const Recurrent& n_;
  const RecurrentLinears& l_;
  const Steps& steps_;
  const Flow flow_;
  const bool backward_;
  const Isa isa_;
  const CellKernels& cells_;
  const PanelKernels& panels_;
};

// A few sequences: the lanes hold units, and every thread reads its share of the
// weights.
class OnRows : public Direction {
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
    const auto sums = [&](const BlockLinear& l) {
      return rounded(with_row_work(*l.rows, isa_, [](const auto& work) { return work.sums(); }));
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
    const auto one = [&](const BlockLinear& l) {
      return with_row_work(*l.rows, isa_, [](const auto& work) { return work.work(); });
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
    std::visit([&](const auto& w) { linear(w, x, e, isa_); },
               few ? *l_.input.rows : *l_.input.panels);
  }

  void step(int64_t k, const Worker& worker, float* own) const {
    const int64_t t = time(k), live = steps_.sizes[t], batch = steps_.sequences();
    const float* from = h_[k % 2];
    float* to = h_[(k + 1) % 2];
    float* scales = own + rounded(kTokens * prepared_stride() / 4);
    float* ready = scales + rounded(steps_.sequences());
    const Rows mine = product(l_.hidden, from, h_stride_, live, n_.block_rows(), sums_,
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
      cells_.step(s);
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
    const Rows mine = product(l_.project, m_, c_stride_, live, 16, project_, project_stride_,
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
  Rows product(const BlockLinear& linear, const float* x, int64_t x_stride, int64_t tokens,
               int64_t block, float* sums, int64_t stride, const Worker& worker, float* own,
               float* scales) const {
    return with_row_work(*linear.rows, isa_, [&](const auto& work) {
      constexpr int64_t kAtOnce = std::decay_t<decltype(work)>::kAtOnce;
      const int64_t blocks = ceil_div(work.w.out, block), prepared = prepared_stride();
      const auto cost = [&](int64_t b) { return cost_of_rows(work.w, b * block); };
      const Rows mine{share(blocks, worker.me, worker.threads, cost),
                      share(blocks, worker.me + 1, worker.threads, cost)};
      const int64_t height = unit_height(work.w);
      const bool ordered = height && block % height == 0;
      const auto unit = [&](int64_t b) { return std::min(b * block, work.w.out) / height; };
      const Rows part =
          ordered ? Rows{unit(mine.begin), ceil_div(std::min(mine.end * block, work.w.out), height)}
                  : Rows{work.part(worker.me, worker.threads),
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

  // Rows of a unit of work, if they are in order; 0 if not.
  static int64_t unit_height(const SellP&) { return 0; }
  static int64_t unit_height(const Bits&) { return 1; }
  static int64_t unit_height(const Groups&) { return 1; }
  static int64_t unit_height(const Strips& w) { return w.height; }

  // sums x scales + bias, made in `ready` unless there is nothing to do.
  const float* scaled(const BlockLinear& linear, const float* sums, float scale, int64_t row,
                      int64_t rows, float* ready) const {
    Epilogue e{};
    e.row_scales =
        with_row_work(*linear.rows, isa_, [](const auto& work) { return row_scales(work.w); });
    if (!e.row_scales && !linear.bias) return sums;
    if (e.row_scales) e.row_scales += row;
    e.bias = linear.bias ? linear.bias + row : nullptr;
    e.y = ready;
    e.dtype = DType::f32;
    panels_.store_token(sums, scale, 0, rows, e);
    return ready;
  }

  int64_t h_stride_, c_stride_, sums_stride_, project_stride_, first_token_ = 0;
  float *h_[2], *c_, *m_, *sums_, *project_, *inputs_;
};

// Many sequences: each has a lane of a panel.
class OnPanels : public Direction {
 private:
  // Chunks of whole blocks of `block` rows.
  template <class F>
  auto with_work(const BlockLinear& linear, int64_t block, F f) const {
    if (const Runs* runs = std::get_if<Runs>(linear.panels)) return f(RunsWork(*runs, isa_));
    StripsWork work(std::get<Strips>(*linear.panels), isa_, threads_);
    const int64_t strips = std::max<int64_t>(1, block / work.w.height);
    work.step = ceil_div(work.step, strips) * strips;
    return f(work);
  }

 public:
  OnPanels(const Recurrent& network, const RecurrentLinears& linears, const Steps& steps,
           const Flow& flow, bool backward, Isa isa)
      : Direction(network, linears, steps, flow, backward, std::min(isa, Isa::avx512_vbmi2)),
        lanes_(lanes(isa_)),
        threads_(omp_get_max_threads()) {
    // Panels of the input projection are as wide as can be, and hold several steps if sequences are
    // few.
    wide_ = linear_panel_width(*l_.input.panels, 64, isa_);
    int64_t widest = std::min(wide_, linear_panel_width(*l_.hidden.panels, 64, isa_));
    if (projects()) widest = std::min(widest, linear_panel_width(*l_.project.panels, 64, isa_));
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
      panels_.pack(rows, DType::f32, flow_.in, wide_, flow_.in, wide_, x_ + i * flow_.in * wide_,
                   DType::f32);
    }
    linear_on_panels(*l_.input.panels,
                     {x_, panels, flow_.in, wide_, l_.input.bias, Activation::none, inputs_}, isa_);
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
              cells_.step(s);
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
    if (units > 0) panels_.store({h, width_, nullptr}, live, unit, units, e);
  }

  int64_t most_sums() const {
    const auto sums = [](const auto& work) { return work.sums(); };
    const int64_t hidden = with_work(l_.hidden, n_.block_rows(), sums);
    return projects() ? std::max(hidden, with_work(l_.project, 1, sums)) : hidden;
  }

  // f(panel, row, rows, sums) for this thread's chunks of rows; sums are null where no lane is
  // live.
  template <class F>
  void product(const BlockLinear& linear, const float* x, int64_t x_rows, int64_t block,
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
          lanes_.quantize(x + p * x_rows * width_ + l, width_,
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
            lanes_.finish({sums, width_, row_scales ? scales + p * width_ : nullptr}, rows,
                          {Activation::none, row_scales ? row_scales + row : nullptr,
                           linear.bias ? linear.bias + row : nullptr, nullptr, false, ready});
            found = ready;
          }
          f(p, row, rows, found);
        }
    });
  }

  const LaneKernels& lanes_;
  const int threads_;  // asked once: chunks must be the same whoever asks, inside a region or out
  int64_t wide_, width_, count_, lanes_a_step_, steps_a_panel_;
  int64_t h_rows_, c_rows_, first_step_ = 0;
  float *h_[2], *c_, *m_, *x_, *inputs_, *staged_;
};

template <class Kind>
void run_layer(const Recurrent& network, const std::vector<RecurrentLinears>& layer,
               const Steps& steps, const std::vector<Flow>& flows, Isa isa) {
  std::vector<Kind> directions;
  for (size_t d = 0; d < flows.size(); ++d)
    directions.emplace_back(network, layer[d], steps, flows[d], d == 1, isa);
  const int64_t count = steps.count(), hoist = std::min(count, Kind::hoist(steps));
  Arena measured{nullptr};
  for (Kind& d : directions) d.lay_out(measured, hoist);
  Arena arena{shared_memory.get<float>(measured.used)};
  int64_t own = 0, work = 0;
  for (Kind& d : directions) {
    d.lay_out(arena, hoist);
    d.begin();
    own = std::max(own, rounded(d.own_floats()));
    work += d.work();
  }
  const int threads = threads_for(work);
  float* memory = thread_memory.get<float>(threads * own);
  SpinBarrier barriers[2];
  for (int64_t k0 = 0; k0 < count; k0 += hoist) {
    const int64_t k1 = std::min(count, k0 + hoist);
    for (Kind& d : directions) d.project(k0, k1);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      // Threads are split between the directions, which need nothing of each other; a single thread
      // takes one after the other.
      const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
      const int64_t teams = std::min(all, static_cast<int64_t>(directions.size()));
      const auto first = [&](int64_t team) { return ceil_div(all * team, teams); };
#pragma omp single
      for (int64_t team = 0; team < teams; ++team)
        barriers[team].expect(first(team + 1) - first(team));
      const int64_t team = me * teams / all;
      const Worker mine{me - first(team), first(team + 1) - first(team), barriers[team]};
      for (size_t d = team; d < directions.size(); d += teams)
        for (int64_t k = k0; k < k1; ++k) directions[d].step(k, mine, memory + me * own);
    }
  }
  for (const Kind& d : directions) d.end();
}

template <class F>
bool all(const std::vector<RecurrentLinears>& layer, F f) {
  return std::all_of(layer.begin(), layer.end(), f);
}

}  // namespace

bool takes_rows(const RecurrentLinears& l) {
  return l.hidden.rows && (!l.project || l.project.rows);
}

bool takes_panels(const RecurrentLinears& l) {
  return l.input.panels && l.hidden.panels && (!l.project || l.project.panels);
}

void run(const Recurrent& network, const Sequences& s, Isa isa) {
  if (s.sizes.empty() || s.sizes[0] == 0) return;
  const Steps steps(s.sizes);
  const int64_t tokens = steps.offsets.back(), batch = steps.sequences();
  const int64_t features = network.directions * network.out;
  const int64_t layers = static_cast<int64_t>(network.layers.size());
  // One direction may write where it has read; of two, the second still reads what the first wrote.
  const bool alternates = network.directions == 2 && layers > 1;
  float* second = alternates ? second_memory.get<float>(tokens * features) : s.y;
  const float* x = s.x;
  int64_t in = network.in;
  for (int64_t i = 0; i < layers; ++i) {
    const auto& layer = network.layers[i];
    float* y = (layers - 1 - i) % 2 ? second : s.y;
    std::vector<Flow> flows;
    for (int64_t d = 0; d < network.directions; ++d) {
      const int64_t h = (i * network.directions + d) * batch;
      flows.push_back({x, in, y + d * network.out, features,
                       s.h0 ? s.h0 + h * network.out : nullptr,
                       s.c0 ? s.c0 + h * network.units : nullptr, s.hn + h * network.out,
                       s.cn ? s.cn + h * network.units : nullptr});
    }
    if (all(layer, takes_rows) && (batch <= kRowTokens || !all(layer, takes_panels)))
      run_layer<OnRows>(network, layer, steps, flows, isa);
    else
      run_layer<OnPanels>(network, layer, steps, flows, isa);
    x = y;
    in = features;
  }
}

}  // namespace se
