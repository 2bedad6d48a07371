#include "blocks/cache.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <unordered_set>

namespace se {

KvCache::KvCache(int64_t layers, int64_t key_heads, int64_t head, int64_t sequences)
    : layers_(layers),
      key_heads_(key_heads),
      head_(head),
      width_((head + 15) / 16 * 16),
      sequences_(sequences) {}

std::shared_ptr<float> KvCache::block() const {
  const size_t bytes = floats() * sizeof(float);  // a multiple of 64
  void* memory = std::aligned_alloc(64, bytes);
  if (!memory) throw std::bad_alloc();
  // Kernels read whole rows: positions that nobody wrote yet must be numbers.
  std::memset(memory, 0, bytes);
  return {static_cast<float*>(memory), std::free};
}

void KvCache::reserve(int64_t sequence, int64_t tokens) {
  Sequence& s = sequences_[sequence];
  if (tokens == 0) return;
  const size_t blocks = (s.length + tokens + kBlock - 1) / kBlock;
  while (s.blocks.size() < blocks) s.blocks.push_back(block());
  std::shared_ptr<float>& first = s.blocks[s.length / kBlock];
  if (first.use_count() > 1) {
    std::shared_ptr<float> own = block();
    std::memcpy(own.get(), first.get(), floats() * sizeof(float));
    first = own;
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
  std::unordered_set<const float*> seen;
  for (const Sequence& s : sequences_)
    for (const auto& b : s.blocks) seen.insert(b.get());
  return static_cast<int64_t>(seen.size()) * floats() * static_cast<int64_t>(sizeof(float));
}

}  // namespace se
