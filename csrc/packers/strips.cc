#include "packers/strips.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace se {
namespace {

// The columns that any row of [begin, end) uses, rising.
std::vector<int32_t> used_columns(const CsrView& w, int64_t begin, int64_t end) {
  std::vector<int32_t> columns(w.columns + w.pointers[begin], w.columns + w.pointers[end]);
  std::sort(columns.begin(), columns.end());
  columns.erase(std::unique(columns.begin(), columns.end()), columns.end());
  return columns;
}

}  // namespace

StripsBuffers pack_strips(const CsrView& w, int64_t height, int64_t block) {
  const int64_t strips = (w.out + height - 1) / height;
  const int64_t blocks = std::max<int64_t>(1, (w.in + block - 1) / block);
  std::vector<std::vector<int32_t>> used(strips);
  std::vector<int64_t> counts(blocks * strips);
  in_parallel(strips, [&](int64_t s) {
    used[s] = used_columns(w, s * height, std::min((s + 1) * height, w.out));
    for (const int32_t k : used[s]) ++counts[k / block * strips + s];
  });

  StripsBuffers all;
  int64_t entries = 0;
  all.pointers.push_back(0);
  for (const int64_t count : counts) {
    entries += count;
    if (entries > std::numeric_limits<int32_t>::max())
      throw std::length_error("strips: entries outgrow int32; split the weight");
    all.pointers.push_back(static_cast<int32_t>(entries));
  }
  all.columns.resize(entries);
  all.values.resize(entries * height * w.element);
  in_parallel(strips, [&](int64_t s) {
    std::vector<int32_t> next(blocks);  // entry of the next column of each K-block
    for (int64_t b = 0; b < blocks; ++b) next[b] = all.pointers[b * strips + s];
    std::vector<int32_t> entry_of(used[s].size());
    for (size_t i = 0; i < used[s].size(); ++i) {
      entry_of[i] = next[used[s][i] / block]++;
      all.columns[entry_of[i]] = static_cast<uint16_t>(used[s][i] % block);
    }
    for (int64_t r = s * height; r < std::min((s + 1) * height, w.out); ++r) {
      size_t i = 0;
      for (int32_t e = w.pointers[r]; e < w.pointers[r + 1]; ++e) {
        while (used[s][i] != w.columns[e]) ++i;
        std::memcpy(&all.values[(entry_of[i] * height + r - s * height) * w.element],
                    static_cast<const char*>(w.values) + e * w.element, w.element);
      }
    }
  });
  return all;
}

}  // namespace se
