// One direction of a recurrent layer: what its two kinds, on rows and on panels, share.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "layers/recurrent.h"
#include "core/barrier.h"
#include "kernels/panel_io/kernel.h"

namespace se {

// Tokens whose inputs are projected together: enough to read the input weights seldom.
constexpr int64_t kHoisted = 256;

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

struct BlockRange {
  int64_t begin, end;
};

// The first of `count` items that thread i of n takes, where before(k) is what the first k cost.
template <class F>
inline int64_t share(int64_t count, int64_t i, int64_t n, F before) {
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
            const Flow& flow, bool backward, Capabilities caps)
      : n_(network),
        l_(linears),
        steps_(steps),
        flow_(flow),
        backward_(backward),
        caps_(caps),
        recurrent_cell_(recurrent_cell(caps)),
        panel_io_(panel_io(caps)) {}

 protected:
  int64_t time(int64_t k) const { return backward_ ? steps_.count() - 1 - k : k; }
  int64_t own_units(BlockRange blocks) const {
    return std::min(blocks.end * 16, n_.units) - blocks.begin * 16;
  }
  bool projects() const { return static_cast<bool>(l_.project); }

  const Recurrent& n_;
  const RecurrentLinears& l_;
  const Steps& steps_;
  const Flow flow_;
  const bool backward_;
  const Capabilities caps_;
  const RecurrentCellKernels& recurrent_cell_;
  const PanelIoKernels& panel_io_;
};

}  // namespace se
