// One direction of a recurrent layer: states, cells and outputs. StepsOnRows and StepsOnPanels add
// the products with the input, hidden and projection weights.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "layers/recurrent.h"
#include "core/barrier.h"
#include "kernels/panel_io/kernel.h"

namespace se {

// Tokens per input projection: enough to amortise reading the input weights.
constexpr int64_t kProjectionTokens = 256;

// The time steps of a packed batch of sequences.
struct TimeSteps {
  const std::vector<int64_t>& batch_sizes;
  std::vector<int64_t> offsets;  // first token of each step; the last entry is the token count

  explicit TimeSteps(const std::vector<int64_t>& sizes)
      : batch_sizes(sizes), offsets(sizes.size() + 1) {
    std::partial_sum(sizes.begin(), sizes.end(), offsets.begin() + 1);
  }
  int64_t count() const { return static_cast<int64_t>(batch_sizes.size()); }
  int64_t sequences() const { return batch_sizes[0]; }
  int64_t tokens() const { return offsets.back(); }
};

// The arrays of one direction of a layer, row-major; see SequenceBatch.
struct DirectionArrays {
  const float* x;
  int64_t input_size;
  float* y;  // the first feature of this direction
  int64_t y_stride;
  const float *h0, *c0;
  float *hn, *cn;
};

// A thread's position in the team that runs a direction.
struct TeamThread {
  int64_t rank, team_size;
  SpinBarrier& barrier;
};

struct Range {
  int64_t begin, end;
};

// Work partition: the range of `count` items that a thread of a team processes. cost_before(i) is
// the total cost of the first i items; ranges have equal costs as far as whole items allow.
template <class F>
inline Range partition(int64_t count, const TeamThread& thread, F cost_before) {
  const auto boundary = [&](int64_t i) {
    if (i == thread.team_size) return count;
    const int64_t goal = cost_before(count) * i / thread.team_size;
    int64_t low = 0, high = count;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      cost_before(middle) < goal ? low = middle + 1 : high = middle;
    }
    return low;
  };
  return {boundary(thread.rank), boundary(thread.rank + 1)};
}

// States are panels: state [panels][features][width], with a sequence in each lane. Width 1 is the
// row-major layout, where a panel is one sequence.
//
// Index k counts the time steps that have been run: the backward direction starts with the last.
class Direction {
 public:
  Direction(const RecurrentNetwork& network, const RecurrentLinears& linears,
            const TimeSteps& steps, const DirectionArrays& arrays, bool backward, int64_t width,
            Capabilities caps)
      : n_(network),
        l_(linears),
        steps_(steps),
        arrays_(arrays),
        backward_(backward),
        caps_(caps),
        recurrent_cell_(recurrent_cell(caps)),
        panel_io_(panel_io(caps)),
        width_(width),
        panels_(ceil_div(steps.sequences(), width)),
        c_size_(n_.tiles() * kUnitTile),
        h_size_(std::max(rounded(n_.output_size), has_projection() ? 0 : c_size_)) {}

  bool has_projection() const { return static_cast<bool>(l_.projection); }

  void load_initial_states() {
    // The padding of the last tile is computed, too: it must not hold NaN.
    std::fill_n(h_[0], panels_ * h_size_ * width_, 0.0f);
    std::fill_n(h_[1], panels_ * h_size_ * width_, 0.0f);
    std::fill_n(c_, panels_ * c_size_ * width_, 0.0f);
    for (int64_t b = 0; b < steps_.sequences(); ++b) {
      if (arrays_.h0)
        copy(arrays_.h0 + b * n_.output_size, 1, sequence(h_[0], h_size_, b), width_,
             n_.output_size);
      if (arrays_.c0)
        copy(arrays_.c0 + b * n_.hidden_size, 1, sequence(c_, c_size_, b), width_, n_.hidden_size);
    }
  }

  void store_final_states() const {
    for (int64_t b = 0; b < steps_.sequences(); ++b) {
      copy(sequence(h_before(steps_.count()), h_size_, b), width_, arrays_.hn + b * n_.output_size,
           1, n_.output_size);
      if (arrays_.cn)
        copy(sequence(c_, c_size_, b), width_, arrays_.cn + b * n_.hidden_size, 1, n_.hidden_size);
    }
  }

  // Applies the cell to whole unit tiles of a panel: rows [row, row + rows) of the hidden product.
  // sums [rows][width]: W_hh h + b_hh, unused where no sequence of the panel is active.
  // inputs [rows][inputs_stride]: W_ih x + b_ih.
  void update_units(int64_t k, int64_t panel, int64_t row, int64_t rows, const float* sums,
                    const float* inputs, int64_t inputs_stride) const {
    const int64_t tiles = rows / n_.tile_rows(), unit = row / n_.tile_rows() * kUnitTile;
    const float* h = state(h_before(k), h_size_, panel, unit);
    float* h_next = state(h_before(k + 1), h_size_, panel, unit);
    const int64_t active = active_lanes(k, panel);
    if (!active) {
      if (!has_projection()) std::copy_n(h, tiles * kUnitTile * width_, h_next);
      return;
    }
    CellStep s{};
    s.cell = n_.cell;
    s.tiles = tiles;
    s.width = width_;
    s.active = active;
    s.sums = sums;
    s.inputs = inputs;
    s.inputs_stride = inputs_stride;
    s.c = state(c_, c_size_, panel, unit);
    // With a projection the cell writes m, and the projection computes h from it.
    s.h = has_projection() ? state(m_, c_size_, panel, unit) : h;
    s.y = has_projection() ? state(m_, c_size_, panel, unit) : h_next;
    recurrent_cell_.step(s);
    if (!has_projection())
      write_output(k, panel, active, h_next, unit,
                   std::min(tiles * kUnitTile, n_.hidden_size - unit));
  }

  // Stores rows [row, row + rows) of h = W_hr m for a panel; inactive sequences keep their state.
  void store_projected(int64_t k, int64_t panel, int64_t row, int64_t rows,
                       const float* sums) const {
    const int64_t active = active_lanes(k, panel);
    const float* h = state(h_before(k), h_size_, panel, row);
    float* h_next = state(h_before(k + 1), h_size_, panel, row);
    if (active == 0 || active == width_) {
      std::copy_n(active ? sums : h, rows * width_, h_next);
    } else {
      for (int64_t i = 0; i < rows * width_; i += width_)
        for (int64_t l = 0; l < width_; ++l) h_next[i + l] = (l < active ? sums : h)[i + l];
    }
    if (active) write_output(k, panel, active, h_next, row, rows);
  }

 protected:
  // The states. m: what the cells of an LSTM with projection write.
  void allocate_states(Arena& arena) {
    h_[0] = arena.take(panels_ * h_size_ * width_);
    h_[1] = arena.take(panels_ * h_size_ * width_);
    c_ = arena.take(panels_ * c_size_ * width_);
    m_ = arena.take(has_projection() ? panels_ * c_size_ * width_ : 0);
  }

  int64_t time(int64_t k) const { return backward_ ? steps_.count() - 1 - k : k; }

  // Sequences of a panel that have not ended at step k: the first lanes.
  int64_t active_lanes(int64_t k, int64_t panel) const {
    return std::clamp<int64_t>(steps_.batch_sizes[time(k)] - panel * width_, 0, width_);
  }

  // The largest vector that a step multiplies: h, or m with a projection.
  int64_t step_features() const { return std::max(n_.output_size, n_.hidden_size); }

  // h before step k: two buffers alternate.
  float* h_before(int64_t k) const { return h_[k % 2]; }

  const RecurrentNetwork& n_;
  const RecurrentLinears& l_;
  const TimeSteps& steps_;
  const DirectionArrays arrays_;
  const bool backward_;
  const Capabilities caps_;
  const RecurrentCellKernels& recurrent_cell_;
  const PanelIoKernels& panel_io_;
  const int64_t width_, panels_;   // lanes of a panel; panels that hold all sequences
  const int64_t c_size_, h_size_;  // features of c and m, and of h, with padding
  float *h_[2], *c_, *m_;

 private:
  float* state(float* states, int64_t features, int64_t panel, int64_t feature) const {
    return states + (panel * features + feature) * width_;
  }
  float* sequence(float* states, int64_t features, int64_t b) const {
    return state(states, features, b / width_, 0) + b % width_;
  }
  static void copy(const float* from, int64_t from_stride, float* to, int64_t to_stride,
                   int64_t count) {
    if (from_stride == 1 && to_stride == 1) {
      std::copy_n(from, count, to);
      return;
    }
    for (int64_t i = 0; i < count; ++i) to[i * to_stride] = from[i * from_stride];
  }

  // Features [feature, feature + count) of y for the active sequences of a panel.
  void write_output(int64_t k, int64_t panel, int64_t active, const float* h, int64_t feature,
                    int64_t count) const {
    if (count <= 0) return;
    Epilogue e{};
    e.y = arrays_.y + (steps_.offsets[time(k)] + panel * width_) * arrays_.y_stride;
    e.y_stride = arrays_.y_stride;
    e.dtype = DType::f32;
    if (width_ == 1)
      std::copy_n(h, count, static_cast<float*>(e.y) + feature);
    else
      panel_io_.store({h, width_, nullptr}, active, feature, count, e);
  }
};

}  // namespace se
