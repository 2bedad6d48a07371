#include "packers/sellp.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>

namespace se {
namespace {

constexpr int kLanes = 16, kWindow = 32;

struct Group {
  std::vector<uint8_t> values, picks;
  std::vector<uint16_t> offsets;
};

// Greedy: the window follows the row that waits for the lowest column.
Group pack_group(const CsrView& w, const int32_t* rows) {
  Group g;
  int32_t next[kLanes], last[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    next[i] = rows[i] < w.out ? w.pointers[rows[i]] : 0;
    last[i] = rows[i] < w.out ? w.pointers[rows[i] + 1] : 0;
  }
  for (;;) {
    int64_t offset = w.in;
    for (int i = 0; i < kLanes; ++i)
      if (next[i] < last[i]) offset = std::min<int64_t>(offset, w.columns[next[i]]);
    if (offset == w.in) return g;
    g.offsets.push_back(static_cast<uint16_t>(offset));
    for (int i = 0; i < kLanes; ++i) {
      const bool takes = next[i] < last[i] && w.columns[next[i]] < offset + kWindow;
      g.picks.push_back(takes ? static_cast<uint8_t>(w.columns[next[i]] - offset) : 0);
      const size_t at = g.values.size();
      g.values.resize(at + w.element, 0);
      if (takes)
        std::memcpy(g.values.data() + at,
                    static_cast<const char*>(w.values) + int64_t{next[i]++} * w.element, w.element);
    }
  }
}

}  // namespace

SellPBuffers pack_sellp(const CsrView& w) {
  const int64_t groups = (w.out + kLanes - 1) / kLanes;
  SellPBuffers all;
  all.rows.resize(groups * kLanes, static_cast<int32_t>(w.out));
  std::iota(all.rows.begin(), all.rows.begin() + w.out, 0);
  const auto count = [&](int32_t r) { return w.pointers[r + 1] - w.pointers[r]; };
  std::stable_sort(all.rows.begin(), all.rows.begin() + w.out,
                   [&](int32_t a, int32_t b) { return count(a) > count(b); });
  std::vector<Group> packed(groups);
  in_parallel(groups, [&](int64_t g) { packed[g] = pack_group(w, all.rows.data() + g * kLanes); });
  all.starts.push_back(0);
  for (Group& g : packed) {
    all.values.insert(all.values.end(), g.values.begin(), g.values.end());
    all.picks.insert(all.picks.end(), g.picks.begin(), g.picks.end());
    all.offsets.insert(all.offsets.end(), g.offsets.begin(), g.offsets.end());
    if (all.offsets.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max()))
      throw std::length_error("sellp: steps outgrow int32; split the weight");
    all.starts.push_back(static_cast<int32_t>(all.offsets.size()));
    g = {};
  }
  return all;
}

}  // namespace se
