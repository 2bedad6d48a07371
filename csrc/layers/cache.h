// Keys and values of earlier tokens, for every layer and sequence.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/types.h"

namespace se {

// Positions come in blocks of 64 that never move. In each, for a layer and a key head:
//   keys   [head][64]       positions lie side by side: a query's scores are sums over rows
//   values [64][head_width] features lie side by side: outputs are sums over rows
// so that one query reads both a vector at a time, and many queries (kernels/layer_panels) a value
// at a time. Sequences share blocks until one of them writes (beam search). Elements are float32,
// or bf16 rounded to nearest even: half the bytes to read, which is what a long sequence's tokens
// cost.
class KvCache {
 public:
  static constexpr int64_t kBlock = 64;

  KvCache(int64_t layers, int64_t key_heads, int64_t head, int64_t sequences, DType dtype);

  int64_t layers() const { return layers_; }
  int64_t key_heads() const { return key_heads_; }
  int64_t head() const { return head_; }
  int64_t head_width() const { return width_; }
  DType dtype() const { return dtype_; }
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

  const void* keys(int64_t layer, int64_t key_head, int64_t sequence, int64_t block) const {
    return at(layer, key_head, sequence, block);
  }
  const void* values(int64_t layer, int64_t key_head, int64_t sequence, int64_t block) const {
    return at(layer, key_head, sequence, block) + head_ * kBlock * size();
  }
  // Keys and values of `count` positions from `position` on, for which there is room: feature d of
  // the j-th is k[d * stride + j].
  void write(int64_t layer, int64_t key_head, int64_t sequence, int64_t position, int64_t count,
             const float* k, const float* v, int64_t stride);

 private:
  struct Sequence {
    int64_t length = 0;
    std::vector<std::shared_ptr<char>> blocks;
  };
  int64_t size() const { return dtype_ == DType::f32 ? 4 : 2; }
  int64_t block_bytes() const { return layers_ * key_heads_ * (head_ + width_) * kBlock * size(); }
  std::shared_ptr<char> block() const;
  char* at(int64_t layer, int64_t key_head, int64_t sequence, int64_t block) const {
    return sequences_[sequence].blocks[block].get() +
           (layer * key_heads_ + key_head) * (head_ + width_) * kBlock * size();
  }

  int64_t layers_, key_heads_, head_, width_;
  DType dtype_;
  std::vector<Sequence> sequences_;
};

}  // namespace se
