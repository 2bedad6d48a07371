// The buffers of a step on rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/layer_rows/kernel.h"
#include "layers/stack.h"
#include "ops/spmv.h"

namespace se {

// The result of a product before its epilogue: sums of all threads [tokens][stride], and the scales
// of the quantised tokens, which each thread computes for itself [threads][kRowTokens].
struct ProductSums {
  float* sums;
  int64_t stride;
  float* scales;
};

// Shared by all threads. Each product of a layer has sums of its own, so that none are overwritten
// before the last thread has read them.
struct RowBuffers {
  ProductSums query, key, value, output, gate, up, down, cross_query, cross_output;
  float* mixed;  // [tokens][query_rows], attention's output
};

// What a thread does not share.
struct RowThreadBuffers {
  float *x, *h;      // [tokens][hidden], the residual stream and the input of a product
  float* inner;      // [tokens][inner]
  float *q, *k, *v;  // of one token: the query heads of one key head, the key and the value
  float* scratch;    // of attention
  char* prepared;    // [kTokens][prepared_bytes], the input as kernels read it
  const void **keys, **values;  // the pages of one key head
};

// The most that any layer needs of each product, and the work of an average layer.
struct RowNeeds {
  int64_t sums[Layer::kLinears] = {}, prepared = 0, work = 0;

  RowNeeds(const Stack& stack, Capabilities caps) {
    for (const Layer& layer : stack.layers) {
      const AttentionSublayer& cross = layer.cross_attention;
      int i = 0;
      for (const LayerLinear* linear : layer.linears()) {
        // Keys and values of a memory are computed on panels.
        if (*linear && linear != &cross.key && linear != &cross.value)
          with_row_work(*linear->rows, caps, [&](const auto& row_work) {
            sums[i] = std::max(sums[i], rounded(row_work.sums()));
            prepared = std::max(prepared, prepared_bytes(row_work.w.in));
            work += row_work.work();
          });
        ++i;
      }
    }
    work /= std::max<int64_t>(1, static_cast<int64_t>(stack.layers.size()));
  }
};

inline RowBuffers take_row_buffers(const LargestLayer& largest, const RowNeeds& needs,
                                   int64_t tokens, int threads, Arena& arena) {
  RowBuffers b;
  // In the order of Layer::linears.
  ProductSums* all[Layer::kLinears] = {&b.query, &b.key,  &b.value,       &b.output,
                                       &b.gate,  &b.up,   &b.down,        &b.cross_query,
                                       nullptr,  nullptr, &b.cross_output};
  for (int i = 0; i < Layer::kLinears; ++i) {
    if (!all[i]) continue;
    all[i]->stride = needs.sums[i];
    all[i]->sums = arena.take(tokens * needs.sums[i]);
    all[i]->scales = arena.take(threads * kRowTokens);
  }
  b.mixed = arena.take(tokens * largest.query_rows);
  return b;
}

// `pages`: the most that a token's attention reads.
inline RowThreadBuffers take_row_thread_buffers(int64_t hidden, const LargestLayer& largest,
                                                const RowNeeds& needs, int64_t tokens,
                                                int64_t pages, Arena& arena) {
  RowThreadBuffers b;
  b.x = arena.take(tokens * hidden);
  b.h = arena.take(tokens * hidden);
  b.inner = arena.take(tokens * largest.inner);
  b.q = arena.take(largest.group_rows);
  b.k = arena.take(largest.head_size);
  b.v = arena.take(largest.head_size);
  b.scratch = arena.take(row_attention_scratch(rounded(largest.head_size)));
  b.prepared = reinterpret_cast<char*>(arena.take(kTokens * needs.prepared / 4));
  b.keys = reinterpret_cast<const void**>(arena.take(2 * pages));
  b.values = reinterpret_cast<const void**>(arena.take(2 * pages));
  return b;
}

}  // namespace se
