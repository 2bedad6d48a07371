#include "packers/tiles.h"

#include <algorithm>
#include <cstring>

#include "layouts/tiles.h"

namespace se {
namespace {

// One band, expanded: [columns of tiles][2][16 lines][16 rows][together].
class Band {
 public:
  Band(const CsrView& w, int64_t together)
      : w_(w),
        together_(together),
        size_(256 * together),
        values_((w.in + 16 * together - 1) / (16 * together) * 2 * size_ * w.element),
        there_(values_.size() / w.element) {}

  void read(int64_t band) {
    std::fill(there_.begin(), there_.end(), 0);
    std::fill(values_.begin(), values_.end(), 0);
    const int64_t row = band * Tiles::kBand, end = std::min(row + Tiles::kBand, w_.out);
    for (int64_t r = row; r < end; ++r)
      for (int32_t e = w_.pointers[r]; e < w_.pointers[r + 1]; ++e) {
        const int64_t k = w_.columns[e], line = k / together_ % 16, half = (r - row) / 16;
        const int64_t tile = k / (16 * together_) * 2 + half;
        const int64_t at =
            tile * size_ + line * 16 * together_ + r % 16 * together_ + k % together_;
        there_[at] = 1;
        std::memcpy(&values_[at * w_.element], static_cast<const char*>(w_.values) + e * w_.element,
                    w_.element);
      }
  }

  int64_t tiles() const { return static_cast<int64_t>(there_.size()) / size_; }
  bool empty(int64_t tile) const {
    const auto first = there_.begin() + tile * size_;
    return std::all_of(first, first + size_, [](uint8_t set) { return !set; });
  }
  // Appends the values of a tile, and its mask unless it is stored whole.
  void append(int64_t tile, bool whole, TilesBuffers& to) const {
    const int64_t first = tile * size_;
    for (int64_t i = first; i < first + size_; ++i)
      if (whole || there_[i])
        to.values.insert(to.values.end(), &values_[i * w_.element],
                         &values_[i * w_.element] + w_.element);
    for (int64_t i = first; i < first + size_ && !whole; i += 8) {
      uint8_t bits = 0;
      for (int j = 0; j < 8; ++j) bits |= static_cast<uint8_t>(there_[i + j] << j);
      to.masks.push_back(bits);
    }
  }

 private:
  const CsrView& w_;
  int64_t together_, size_;
  std::vector<uint8_t> values_, there_;
};

}  // namespace

TilesBuffers pack_tiles(const CsrView& w) {
  const int64_t together = w.element == 1 ? 4 : 2, size = 256 * together;
  const int64_t bands = (w.out + Tiles::kBand - 1) / Tiles::kBand, entries = w.pointers[w.out];
  Band band(w, together);
  TilesBuffers all;
  int64_t tiles = 0;
  for (int64_t b = 0; b < bands; ++b) {
    all.entries.push_back(static_cast<int32_t>(all.columns.size()));
    all.tiles.push_back(static_cast<int32_t>(tiles));
    band.read(b);
    for (int64_t t = 0; t < band.tiles(); t += 2) {
      const int halves = !band.empty(t) + 2 * !band.empty(t + 1);
      if (!halves) continue;
      all.columns.push_back(static_cast<uint16_t>(t / 2));
      all.halves.push_back(static_cast<uint8_t>(halves));
      tiles += halves == 3 ? 2 : 1;
    }
  }
  all.entries.push_back(static_cast<int32_t>(all.columns.size()));
  all.tiles.push_back(static_cast<int32_t>(tiles));
  const bool whole = tiles * size * w.element <= entries * w.element + tiles * size / 8;
  for (int64_t b = 0; b < bands; ++b) {
    all.starts.push_back(static_cast<int32_t>(all.values.size() / w.element));
    band.read(b);
    for (int32_t e = all.entries[b]; e < all.entries[b + 1]; ++e)
      for (int half = 0; half < 2; ++half)
        if (all.halves[e] >> half & 1) band.append(2 * all.columns[e] + half, whole, all);
  }
  all.starts.push_back(static_cast<int32_t>(all.values.size() / w.element));
  all.values.resize(all.values.size() + 64 * w.element);
  return all;
}

}  // namespace se
