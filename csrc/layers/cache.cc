#include "layers/cache.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <unordered_set>

namespace se {
namespace {

void put(float x, float* to) { *to = x; }

// To nearest even; NaN stays NaN.
void put(float x, uint16_t* to) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  *to = static_cast<uint16_t>(x == x ? (u + 0x7fff + (u >> 16 & 1)) >> 16 : u >> 16 | 0x40);
}

template <class T>
void put_rows(const float* k, const float* v, int64_t stride, int64_t count, int64_t head, T* keys,
              T* values, int64_t width) {
  for (int64_t d = 0; d < head; ++d)
    for (int64_t j = 0; j < count; ++j) put(k[d * stride + j], keys + d * KvCache::kBlock + j);
  for (int64_t j = 0; j < count; ++j)
    for (int64_t d = 0; d < head; ++d) put(v[d * stride + j], values + j * width + d);
}

}  // namespace

KvCache::KvCache(int64_t layers, int64_t key_heads, int64_t head, int64_t sequences, DType dtype)
    : layers_(layers),
      key_heads_(key_heads),
      head_(head),
      width_((head + 15) / 16 * 16),
      dtype_(dtype),
      sequences_(sequences) {}

std::shared_ptr<char> KvCache::block() const {
  const size_t bytes = block_bytes();  // a multiple of 64
  void* memory = std::aligned_alloc(64, bytes);
  if (!memory) throw std::bad_alloc();
  // Kernels read whole rows: positions that nobody wrote yet must be numbers.
  std::memset(memory, 0, bytes);
  return {static_cast<char*>(memory), std::free};
}

void KvCache::reserve(int64_t sequence, int64_t tokens) {
  Sequence& s = sequences_[sequence];
  if (tokens == 0) return;
  const size_t blocks = (s.length + tokens + kBlock - 1) / kBlock;
  while (s.blocks.size() < blocks) s.blocks.push_back(block());
  std::shared_ptr<char>& first = s.blocks[s.length / kBlock];
  if (first.use_count() > 1) {
    std::shared_ptr<char> own = block();
    std::memcpy(own.get(), first.get(), block_bytes());
    first = own;
  }
}

void KvCache::write(int64_t layer, int64_t key_head, int64_t sequence, int64_t position,
                    int64_t count, const float* k, const float* v, int64_t stride) {
  for (int64_t i = 0; i < count;) {
    const int64_t first = (position + i) % kBlock, n = std::min(count - i, kBlock - first);
    char* keys = at(layer, key_head, sequence, (position + i) / kBlock);
    const auto rows = [&](auto* to) {
      put_rows(k + i, v + i, stride, n, head_, to + first, to + head_ * kBlock + first * width_,
               width_);
    };
    dtype_ == DType::f32 ? rows(reinterpret_cast<float*>(keys))
                         : rows(reinterpret_cast<uint16_t*>(keys));
    i += n;
  }
}

void KvCache::crop(int64_t sequence, int64_t length) {
  Sequence& s = sequences_[sequence];
  s.length = length;
  s.blocks.resize((length + kBlock - 1) / kBlock);
}

void KvCache::select(const std::vector<int64_t>& from) {
  std::vector<Sequence> chosen;
  chosen.reserve(from.size());
  for (const int64_t i : from) {
    chosen.push_back(sequences_[i]);
    Sequence& s = chosen.back();
    s.blocks.resize((s.length + kBlock - 1) / kBlock);  // reserved ones past the end stay behind
  }
  sequences_ = std::move(chosen);
}

int64_t KvCache::bytes() const {
  std::unordered_set<const char*> seen;
  for (const Sequence& s : sequences_)
    for (const auto& b : s.blocks) seen.insert(b.get());
  return static_cast<int64_t>(seen.size()) * block_bytes();
}

}  // namespace se
