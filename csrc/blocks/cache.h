// Keys and values of earlier tokens, for every layer and sequence.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace se {

// Positions come in blocks of 64 that never move. In each, for a layer and a key head:
//   keys   [head][64]       positions lie side by side: a query's scores are sums over rows
//   values [64][head_width] features lie side by side: outputs are sums over rows
// so that one query reads both a vector at a time, and many queries (kernels/lanes) a value at a
// time. Sequences share blocks until one of them writes (beam search).
class KvCache {
 public:
  static constexpr int64_t kBlock = 64;

  KvCache(int64_t layers, int64_t key_heads, int64_t head, int64_t sequences);

  int64_t layers() const { return layers_; }
  int64_t key_heads() const { return key_heads_; }
  int64_t head() const { return head_; }
  int64_t head_width() const { return width_; }
  int64_t sequences() const { return static_cast<int64_t>(sequences_.size()); }
  int64_t length(int64_t sequence) const { return sequences_[sequence].length; }
  int64_t bytes() const;  // of all blocks, shared ones once

  // Makes room for `tokens` more positions, that belong to this sequence alone; `add` counts them.
  void reserve(int64_t sequence, int64_t tokens);
  void add(int64_t sequence, int64_t tokens) { sequences_[sequence].length += tokens; }
  // Forgets all but the first `length` positions.
  void crop(int64_t sequence, int64_t length);
  // Sequence i becomes a copy of the present sequence from[i].
  void select(const std::vector<int64_t>& from);

  float* keys(int64_t layer, int64_t key_head, int64_t sequence, int64_t block) const {
    return sequences_[sequence].blocks[block].get() +
           (layer * key_heads_ + key_head) * (head_ + width_) * kBlock;
  }
  float* values(int64_t layer, int64_t key_head, int64_t sequence, int64_t block) const {
    return keys(layer, key_head, sequence, block) + head_ * kBlock;
  }

 private:
  struct Sequence {
    int64_t length = 0;
    std::vector<std::shared_ptr<float>> blocks;
  };
  int64_t floats() const { return layers_ * key_heads_ * (head_ + width_) * kBlock; }
  std::shared_ptr<float> block() const;

  int64_t layers_, key_heads_, head_, width_;
  std::vector<Sequence> sequences_;
};

}  // namespace se
