#include "packers/sellp.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>

namespace se {
namespace {

constexpr int kLanes = 16, kWindow = 32;

struct Slice {
  std::vector<uint8_t> picks;
  std::vector<uint16_t> offsets;
};

// Greedy: the window follows the row that waits for the lowest column.
Slice pack_slice(const CsrView& w, const int32_t* rows) {
  Slice slice;
  int32_t next[kLanes], last[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    next[i] = rows[i] < w.out ? w.pointers[rows[i]] : 0;
    last[i] = rows[i] < w.out ? w.pointers[rows[i] + 1] : 0;
  }
  for (;;) {
    int64_t offset = w.in;
    for (int i = 0; i < kLanes; ++i)
      if (next[i] < last[i]) offset = std::min<int64_t>(offset, w.columns[next[i]]);
    if (offset == w.in) return slice;
    slice.offsets.push_back(static_cast<uint16_t>(offset));
    for (int i = 0; i < kLanes; ++i) {
      const bool inside = next[i] < last[i] && w.columns[next[i]] < offset + kWindow;
      slice.picks.push_back(inside ? static_cast<uint8_t>(w.columns[next[i]++] - offset) : 0);
    }
  }
}

}  // namespace

SellPBuffers sellp_pattern(const CsrView& w) {
  const int64_t slices = (w.out + kLanes - 1) / kLanes;
  SellPBuffers all;
  all.rows.resize(slices * kLanes, static_cast<int32_t>(w.out));
  std::iota(all.rows.begin(), all.rows.begin() + w.out, 0);
  const auto count = [&](int32_t r) { return w.pointers[r + 1] - w.pointers[r]; };
  std::stable_sort(all.rows.begin(), all.rows.begin() + w.out,
                   [&](int32_t a, int32_t b) { return count(a) > count(b); });
  std::vector<Slice> packed(slices);
  in_parallel(slices, [&](int64_t g) { packed[g] = pack_slice(w, all.rows.data() + g * kLanes); });
  all.starts.push_back(0);
  for (Slice& slice : packed) {
    all.picks.insert(all.picks.end(), slice.picks.begin(), slice.picks.end());
    all.offsets.insert(all.offsets.end(), slice.offsets.begin(), slice.offsets.end());
    if (all.offsets.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max()))
      throw std::length_error("sellp: steps outgrow int32; split the weight");
    all.starts.push_back(static_cast<int32_t>(all.offsets.size()));
    slice = {};
  }
  return all;
}

void fill_sellp(const CsrView& rows, int64_t first, const int32_t* lanes, const uint16_t* offsets,
                const int32_t* starts, uint8_t* values) {
  in_parallel(rows.out, [&](int64_t r) {
    const int32_t lane = lanes[first + r];
    int64_t step = starts[lane / kLanes];
    const int64_t end = starts[lane / kLanes + 1];
    for (int32_t e = rows.pointers[r]; e < rows.pointers[r + 1]; ++e, ++step) {
      while (step < end && rows.columns[e] >= offsets[step] + kWindow) ++step;
      if (step >= end || rows.columns[e] < offsets[step])
        throw std::invalid_argument("sellp: rows do not have the pattern");
      std::memcpy(values + (step * kLanes + lane % kLanes) * rows.element,
                  static_cast<const char*>(rows.values) + int64_t{e} * rows.element, rows.element);
    }
  });
}

SellPBuffers pack_sellp(const CsrView& w) {
  SellPBuffers all = sellp_pattern(w);
  all.values.resize(all.picks.size() * w.element);
  std::vector<int32_t> lanes(w.out);
  for (size_t i = 0; i < all.rows.size(); ++i)
    if (all.rows[i] < w.out) lanes[all.rows[i]] = static_cast<int32_t>(i);
  fill_sellp(w, 0, lanes.data(), all.offsets.data(), all.starts.data(), all.values.data());
  return all;
}

}  // namespace se
