// Keys and values of earlier tokens, for every layer and sequence.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/types.h"

namespace se {

// The heads of one layer whose keys and values are kept.
struct KvHeads {
  int64_t key_heads, head_size;
  bool operator==(const KvHeads& other) const {
    return key_heads == other.key_heads && head_size == other.head_size;
  }
};

// Positions are stored in pages of 64 that never move. A page holds, for each layer and key head:
//   keys   [head_size][64]     positions are contiguous: the scores of a query are sums over rows
//   values [64][value_stride]  features are contiguous: outputs are sums over rows
// A single query reads both a vector at a time; many queries (kernels/layer_panels) read one value
// at a time. Sequences share pages until one of them writes (beam search). Elements are float32, or
// bfloat16 rounded to nearest even, which halves the bytes that each token of a long sequence
// reads.
class KvCache {
 public:
  static constexpr int64_t kPagePositions = 64;

  KvCache(const std::vector<KvHeads>& layers, int64_t sequences, DType dtype);

  int64_t layers() const { return static_cast<int64_t>(layers_.size()); }
  const KvHeads& heads(int64_t layer) const { return layers_[layer].heads; }
  // Elements from one position's values to the next's: head_size rounded up to 16.
  int64_t value_stride(int64_t layer) const { return layers_[layer].value_stride; }
  DType dtype() const { return dtype_; }
  int64_t sequences() const { return static_cast<int64_t>(sequences_.size()); }
  int64_t length(int64_t sequence) const { return sequences_[sequence].length; }
  int64_t bytes() const;  // of all pages; a shared page counts once

  // Allocates pages for `tokens` more positions, which no other sequence shares. The length grows
  // with `add`, after the positions were written.
  void reserve(int64_t sequence, int64_t tokens);
  void add(int64_t sequence, int64_t tokens) { sequences_[sequence].length += tokens; }
  // Drops all but the first `length` positions.
  void crop(int64_t sequence, int64_t length);
  // Sequence i becomes a copy of the present sequence from[i].
  void select(const std::vector<int64_t>& from);

  const void* keys(int64_t layer, int64_t key_head, int64_t sequence, int64_t page) const {
    return at(layer, key_head, sequence, page);
  }
  const void* values(int64_t layer, int64_t key_head, int64_t sequence, int64_t page) const {
    return at(layer, key_head, sequence, page) +
           layers_[layer].heads.head_size * kPagePositions * size();
  }
  // Writes keys and values of `count` positions from `position` on, which must be reserved: feature
  // d of the j-th is k[d * stride + j].
  void write(int64_t layer, int64_t key_head, int64_t sequence, int64_t position, int64_t count,
             const float* k, const float* v, int64_t stride);

 private:
  struct LayerPages {
    KvHeads heads;
    int64_t value_stride;
    int64_t offset;  // bytes from the start of a page to the first key head

    int64_t head_elements() const { return (heads.head_size + value_stride) * kPagePositions; }
  };
  struct Sequence {
    int64_t length = 0;
    std::vector<std::shared_ptr<char>> pages;
  };
  int64_t size() const { return dtype_ == DType::f32 ? 4 : 2; }
  std::shared_ptr<char> new_page() const;
  char* at(int64_t layer, int64_t key_head, int64_t sequence, int64_t page) const {
    const LayerPages& l = layers_[layer];
    return sequences_[sequence].pages[page].get() + l.offset +
           key_head * l.head_elements() * size();
  }

  std::vector<LayerPages> layers_;
  DType dtype_;
  int64_t page_bytes_ = 0;
  std::vector<Sequence> sequences_;
};

}  // namespace se
