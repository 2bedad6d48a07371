#include "packers/columns.h"

#include <algorithm>
#include <cstring>

#include "layouts/columns.h"

namespace se {

ColumnsBuffers pack_columns(const CsrView& w, int64_t height) {
  const int64_t step = w.element == 1 ? 64 : 32;
  ColumnsBuffers all;
  all.pointers.push_back(0);
  std::vector<int32_t> place(w.in);  // of each column in its band
  for (int64_t row = 0; row < w.out; row += height) {
    const int64_t end = std::min(row + height, w.out);
    std::vector<uint16_t> used(w.columns + w.pointers[row], w.columns + w.pointers[end]);
    std::sort(used.begin(), used.end());
    used.erase(std::unique(used.begin(), used.end()), used.end());
    for (size_t i = 0; i < used.size(); ++i) place[used[i]] = static_cast<int32_t>(i);
    while (used.size() % step) used.push_back(used.back());
    const int64_t first = static_cast<int64_t>(all.columns.size());
    all.columns.insert(all.columns.end(), used.begin(), used.end());
    all.values.resize(all.columns.size() * height * w.element);
    for (int64_t r = row; r < end; ++r)
      for (int32_t e = w.pointers[r]; e < w.pointers[r + 1]; ++e) {
        const int64_t at = first + place[w.columns[e]];
        const int64_t to = (at / step * height + r - row) * step + at % step;
        std::memcpy(&all.values[to * w.element], static_cast<const char*>(w.values) + e * w.element,
                    w.element);
      }
    all.pointers.push_back(static_cast<int32_t>(all.columns.size() / step));
  }
  return all;
}

}  // namespace se
