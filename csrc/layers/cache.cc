#include "layers/cache.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <unordered_set>

namespace se {
namespace {

void store(float x, float* to) { *to = x; }

// Rounds to nearest even; NaN stays NaN.
void store(float x, uint16_t* to) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  *to = static_cast<uint16_t>(x == x ? (u + 0x7fff + (u >> 16 & 1)) >> 16 : u >> 16 | 0x40);
}

template <class T>
void store_positions(const float* k, const float* v, int64_t stride, int64_t count,
                     int64_t head_size, T* keys, T* values, int64_t value_stride) {
  for (int64_t d = 0; d < head_size; ++d)
    for (int64_t j = 0; j < count; ++j)
      store(k[d * stride + j], keys + d * KvCache::kPagePositions + j);
  for (int64_t j = 0; j < count; ++j)
    for (int64_t d = 0; d < head_size; ++d) store(v[d * stride + j], values + j * value_stride + d);
}

}  // namespace

KvCache::KvCache(const std::vector<KvHeads>& layers, int64_t sequences, DType dtype)
    : dtype_(dtype), sequences_(sequences) {
  for (const KvHeads& heads : layers) {
    layers_.push_back({heads, (heads.head_size + 15) / 16 * 16, page_bytes_});
    page_bytes_ += heads.key_heads * layers_.back().head_elements() * size();
  }
}

std::shared_ptr<char> KvCache::new_page() const {
  void* memory = std::aligned_alloc(64, page_bytes_);  // a multiple of 64
  if (!memory) throw std::bad_alloc();
  // Kernels read whole rows: positions that were not written yet must be finite.
  std::memset(memory, 0, page_bytes_);
  return {static_cast<char*>(memory), std::free};
}

void KvCache::reserve(int64_t sequence, int64_t tokens) {
  Sequence& s = sequences_[sequence];
  if (tokens == 0) return;
  const size_t pages = (s.length + tokens + kPagePositions - 1) / kPagePositions;
  while (s.pages.size() < pages) s.pages.push_back(new_page());
  std::shared_ptr<char>& first = s.pages[s.length / kPagePositions];
  if (first.use_count() > 1) {
    std::shared_ptr<char> copy = new_page();
    std::memcpy(copy.get(), first.get(), page_bytes_);
    first = copy;
  }
}

void KvCache::write(int64_t layer, int64_t key_head, int64_t sequence, int64_t position,
                    int64_t count, const float* k, const float* v, int64_t stride) {
  const int64_t head_size = heads(layer).head_size, values_at = head_size * kPagePositions;
  const int64_t row = value_stride(layer);
  for (int64_t i = 0; i < count;) {
    const int64_t first = (position + i) % kPagePositions;
    const int64_t n = std::min(count - i, kPagePositions - first);
    char* page = at(layer, key_head, sequence, (position + i) / kPagePositions);
    const auto store_run = [&](auto* keys) {
      store_positions(k + i, v + i, stride, n, head_size, keys + first,
                      keys + values_at + first * row, row);
    };
    dtype_ == DType::f32 ? store_run(reinterpret_cast<float*>(page))
                         : store_run(reinterpret_cast<uint16_t*>(page));
    i += n;
  }
}

void KvCache::crop(int64_t sequence, int64_t length) {
  Sequence& s = sequences_[sequence];
  s.length = length;
  s.pages.resize((length + kPagePositions - 1) / kPagePositions);
}

void KvCache::select(const std::vector<int64_t>& from) {
  std::vector<Sequence> selected;
  selected.reserve(from.size());
  for (const int64_t i : from) {
    selected.push_back(sequences_[i]);
    Sequence& s = selected.back();
    // Reserved pages past the end are not copied.
    s.pages.resize((s.length + kPagePositions - 1) / kPagePositions);
  }
  sequences_ = std::move(selected);
}

int64_t KvCache::bytes() const {
  std::unordered_set<const char*> seen;
  for (const Sequence& s : sequences_)
    for (const auto& page : s.pages) seen.insert(page.get());
  return static_cast<int64_t>(seen.size()) * page_bytes_;
}

}  // namespace se
