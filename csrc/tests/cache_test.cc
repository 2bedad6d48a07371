// The cache of keys and values: what is written is read back, and sequences that share memory are
// separated before one of them is written.
#include <cmath>
#include <cstring>
#include <vector>

#include "layers/cache.h"
#include "tests/check.h"

namespace se {
namespace {

constexpr int64_t kPage = KvCache::kPagePositions;

std::vector<KvHeads> uneven_layers() { return {{3, 20}, {1, 7}}; }

// Value of a feature of a key at a position; values are the negative of keys.
float element(int64_t layer, int64_t head, int64_t position, int64_t feature, float tag) {
  return tag + static_cast<float>(layer * 1000 + head * 100 + position) + 0.01f * feature;
}

void append(KvCache& cache, int64_t sequence, int64_t tokens, float tag) {
  const int64_t first = cache.length(sequence);
  cache.reserve(sequence, tokens);
  for (int64_t l = 0; l < cache.layers(); ++l)
    for (int64_t h = 0; h < cache.heads(l).key_heads; ++h) {
      const int64_t size = cache.heads(l).head_size;
      std::vector<float> k(size * tokens), v(size * tokens);
      for (int64_t d = 0; d < size; ++d)
        for (int64_t j = 0; j < tokens; ++j) {
          k[d * tokens + j] = element(l, h, first + j, d, tag);
          v[d * tokens + j] = -k[d * tokens + j];
        }
      cache.write(l, h, sequence, first, tokens, k.data(), v.data(), tokens);
    }
  cache.add(sequence, tokens);
}

// Whether positions [begin, end) hold what `append` wrote under `tag`.
bool holds(const KvCache& cache, int64_t sequence, int64_t begin, int64_t end, float tag) {
  for (int64_t l = 0; l < cache.layers(); ++l)
    for (int64_t h = 0; h < cache.heads(l).key_heads; ++h)
      for (int64_t p = begin; p < end; ++p) {
        const int64_t page = p / kPage, j = p % kPage;
        const float* k = static_cast<const float*>(cache.keys(l, h, sequence, page));
        const float* v = static_cast<const float*>(cache.values(l, h, sequence, page));
        for (int64_t d = 0; d < cache.heads(l).head_size; ++d) {
          const float truth = element(l, h, p, d, tag);
          if (k[d * kPage + j] != truth) return false;
          if (v[j * cache.value_stride(l) + d] != -truth) return false;
        }
      }
  return true;
}

void test_append_and_crop() {
  KvCache cache(uneven_layers(), 2, DType::f32);
  append(cache, 0, 1, 0.5f);
  append(cache, 0, 130, 0.5f);
  append(cache, 1, 64, 0.25f);
  CHECK(cache.length(0) == 131 && cache.length(1) == 64);
  CHECK(holds(cache, 0, 0, 131, 0.5f) && holds(cache, 1, 0, 64, 0.25f));
  cache.crop(0, 70);
  append(cache, 0, 3, 0.75f);
  CHECK(cache.length(0) == 73);
  CHECK(holds(cache, 0, 0, 70, 0.5f) && holds(cache, 0, 70, 73, 0.75f));
}

void test_select_copies_before_it_writes() {
  KvCache cache(uneven_layers(), 2, DType::f32);
  append(cache, 0, 70, 0.5f);
  append(cache, 1, 10, 0.25f);
  const int64_t before = cache.bytes();
  cache.select({0, 0, 1});
  CHECK(cache.sequences() == 3 && cache.bytes() == before);  // shared
  append(cache, 1, 1, 0.75f);
  CHECK(cache.bytes() > before);
  append(cache, 0, 1, 0.5f);
  CHECK(holds(cache, 0, 0, 71, 0.5f));
  CHECK(holds(cache, 1, 0, 70, 0.5f) && holds(cache, 1, 70, 71, 0.75f));
  CHECK(holds(cache, 2, 0, 10, 0.25f));
}

void test_bf16_rounds_to_nearest_even() {
  KvCache cache({{1, 1}}, 1, DType::bf16);
  cache.reserve(0, 3);
  const float k[] = {1.0f, 1.00390625f, 1.01171875f}, v[] = {-1.0f, -2.0f, -4.0f};
  cache.write(0, 0, 0, 0, 3, k, v, 3);
  cache.add(0, 3);
  const uint16_t* bits = static_cast<const uint16_t*>(cache.keys(0, 0, 0, 0));
  CHECK(bits[0] == 0x3F80 && bits[1] == 0x3F80 && bits[2] == 0x3F82);  // ties go to even
}

}  // namespace
}  // namespace se

int main() {
  se::test_append_and_crop();
  se::test_select_copies_before_it_writes();
  se::test_bf16_rounds_to_nearest_even();
}
