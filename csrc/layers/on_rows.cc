// A few tokens, as in decoding: activations are rows, and what costs time is reading the weights,
// of which every thread reads a share. All else is so little that each thread does it for itself,
// where sharing it would cost a barrier: a layer has five, each after a product or attention.
#include <omp.h>

#include <algorithm>
#include <numeric>

#include "layers/stack.h"
#include "kernels/layer_rows/kernel.h"
#include "ops/spmv.h"

namespace se {
namespace {

thread_local Workspace shared_memory, thread_memory;

// Sums of a product, all threads' [tokens][stride], and the scales of its tokens, a thread's own.
struct Sums {
  float* sums;
  int64_t stride;
  float* scales;
};

// Shared by all threads; every product of a layer has sums of its own, so that none is overwritten
// before the last thread has read it.
struct Shared {
  Sums query, key, value, output, gate, up, down, cross_query, cross_output;
  float* mixed;  // [tokens][query_rows]
};

struct Mine {
  float *x, *h;      // [tokens][hidden], the residual stream and what a product reads
  float* inner;      // [tokens][inner]
  float *q, *k, *v;  // [query_rows / key_heads], [head] and [head] of one token
  float* scratch;    // of attention
  char* prepared;    // [kTokens][prepared_bytes]
  const void **keys, **values;
};

// One of the new tokens.
struct Token {
  int64_t sequence, place;  // place: position in its sequence, not what rotates
};

class Rows {
 public:
  Rows(const Stack& stack, KvCache& cache, const KvCache* memory, const std::vector<Token>& tokens,
       const int64_t* positions, Capabilities caps)
      : s_(stack),
        cache_(cache),
        memory_(memory),
        tokens_(tokens),
        positions_(positions),
        caps_(caps),
        layer_rows_(layer_rows(caps)),
        panel_io_(panel_io(caps)) {}

  void layer(int64_t i, const Shared& b, const Mine& mine) const {
    const Layer& l = s_.layers[i];
    const float* x = mine.x;
    if (s_.norm_first) x = norm(l.norm1, mine.x, mine.h);
    product(l.query, x, s_.hidden, b.query, mine);
    if (l.key) {
      product(l.key, x, s_.hidden, b.key, mine);
      product(l.value, x, s_.hidden, b.value, mine);
    }
#pragma omp barrier
    attention(i, b, mine);
#pragma omp barrier
    product(l.output, b.mixed, s_.query_rows(), b.output, mine);
#pragma omp barrier
    finish(l.output, b.output, Activation::none, mine.x, s_.hidden, mine.x);
    if (!s_.norm_first) norm(l.norm1, mine.x, mine.x);
    if (l.cross_query) cross(i, b, mine);
    x = s_.norm_first ? norm(l.norm2, mine.x, mine.h) : mine.x;
    if (l.gate) product(l.gate, x, s_.hidden, b.gate, mine);
    product(l.up, x, s_.hidden, b.up, mine);
#pragma omp barrier
    finish(l.up, b.up, l.gate ? Activation::none : s_.activation, nullptr, s_.inner, mine.inner);
    if (l.gate) gate(l.gate, b.gate, mine);
    product(l.down, mine.inner, s_.inner, b.down, mine);
#pragma omp barrier
    finish(l.down, b.down, Activation::none, mine.x, s_.hidden, mine.x);
    if (!s_.norm_first) norm(l.norm2, mine.x, mine.x);
  }

  const float* norm(const Norm& norm, const float* x, float* y) const {
    for (int64_t t = 0; t < count(); ++t)
      layer_rows_.norm(x + t * s_.hidden, s_.hidden, norm, y + t * s_.hidden);
    return y;
  }

 private:
  int64_t count() const { return static_cast<int64_t>(tokens_.size()); }

  // This thread's rows of linear x, from x [tokens][in].
  void product(const LayerLinear& linear, const float* x, int64_t in, const Sums& to,
               const Mine& mine) const {
    with_row_work(*linear.rows, caps_, [&](const auto& work) {
      constexpr int64_t kAtOnce = std::decay_t<decltype(work)>::kAtOnce;
      const int64_t i = omp_get_thread_num(), n = omp_get_num_threads();
      const int64_t stride = prepared_bytes(in);
      for (int64_t t0 = 0; t0 < count(); t0 += kAtOnce) {
        const int64_t tokens = std::min(count() - t0, kAtOnce);
        for (int64_t t = 0; t < tokens; ++t)
          to.scales[i * kRowTokens + t0 + t] =
              work.prepare(x + (t0 + t) * in, mine.prepared + t * stride);
        work.run(work.part(i, n), work.part(i + 1, n), mine.prepared, stride, tokens,
                 to.sums + t0 * to.stride, to.stride);
      }
    });
  }

  // y[rows] = act(sums x scales + bias) + residual, of token t from `row` on.
  void finish_rows(const LayerLinear& linear, const Sums& from, int64_t t, int64_t row,
                   int64_t rows, Activation activation, const float* residual, float* y) const {
    Epilogue e{};
    e.activation = activation;
    e.row_scales =
        with_row_work(*linear.rows, caps_, [](const auto& work) { return row_scales(work.w); });
    if (e.row_scales) e.row_scales += row;
    e.bias = linear.bias ? linear.bias + row : nullptr;
    e.residual = residual;
    e.y = y;
    e.dtype = DType::f32;
    panel_io_.store_token(from.sums + t * from.stride + row,
                          from.scales[omp_get_thread_num() * kRowTokens + t], 0, rows, e);
  }

  void finish(const LayerLinear& linear, const Sums& from, Activation activation,
              const float* residual, int64_t features, float* y) const {
    for (int64_t t = 0; t < count(); ++t)
      finish_rows(linear, from, t, 0, features, activation,
                  residual ? residual + t * features : nullptr, y + t * features);
  }

  // inner = act(gate) x inner, a stretch at a time.
  void gate(const LayerLinear& linear, const Sums& from, const Mine& mine) const {
    constexpr int64_t kStretch = 256;
    float part[kStretch];
    for (int64_t t = 0; t < count(); ++t)
      for (int64_t row = 0; row < s_.inner; row += kStretch) {
        const int64_t n = std::min(s_.inner - row, kStretch);
        finish_rows(linear, from, t, row, n, s_.activation, nullptr, part);
        layer_rows_.multiply(part, n, mine.inner + t * s_.inner + row);
      }
  }

  // A thread takes some of the key heads of the sequences, with all query heads that read them:
  // nobody else needs their new keys and values.
  void attention(int64_t layer, const Shared& b, const Mine& mine) const {
    const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    const int64_t items = cache_.sequences() * s_.key_heads;
    for (int64_t i = items * me / all; i < items * (me + 1) / all; ++i) {
      int64_t known = -1;
      for (int64_t t = 0; t < count(); ++t)
        if (tokens_[t].sequence == i / s_.key_heads)
          known = attend(layer, t, i % s_.key_heads, known, b, mine);
    }
  }

  // Returns how many blocks of the cache stand in mine.keys and values.
  int64_t attend(int64_t layer, int64_t t, int64_t h, int64_t known, const Shared& b,
                 const Mine& mine) const {
    constexpr int64_t B = KvCache::kBlock;
    const Layer& l = s_.layers[layer];
    const Token& token = tokens_[t];
    const int64_t group = s_.heads / s_.key_heads, head = s_.head, place = token.place;
    // Without linears of their own, keys and values are rows of the query's.
    const LayerLinear& key = l.key ? l.key : l.query;
    const LayerLinear& value = l.key ? l.value : l.query;
    const int64_t key_row = (l.key ? h : s_.heads + h) * head;
    const int64_t value_row = (l.key ? h : s_.heads + s_.key_heads + h) * head;

    finish_rows(key, l.key ? b.key : b.query, t, key_row, head, Activation::none, nullptr, mine.k);
    turn(l.key_norm, t, mine.k);
    finish_rows(value, l.key ? b.value : b.query, t, value_row, head, Activation::none, nullptr,
                mine.v);
    cache_.write(layer, h, token.sequence, place, 1, mine.k, mine.v, 1);
    finish_rows(l.query, b.query, t, h * group * head, group * head, Activation::none, nullptr,
                mine.q);
    for (int64_t g = 0; g < group; ++g) turn(l.query_norm, t, mine.q + g * head);

    const int64_t blocks = place / B + 1;
    for (int64_t i = std::max<int64_t>(known, 0); i < blocks; ++i) {
      mine.keys[i] = cache_.keys(layer, h, token.sequence, i);
      mine.values[i] = cache_.values(layer, h, token.sequence, i);
    }
    RowAttention a{};
    a.q = mine.q;
    a.y = b.mixed + t * s_.query_rows() + h * group * head;
    a.queries = group;
    a.head = head;
    a.scale = s_.scale;
    a.keys = mine.keys;
    a.values = mine.values;
    a.dtype = cache_.dtype();
    a.width = cache_.head_width();
    a.begin = s_.window ? std::max<int64_t>(0, place + 1 - s_.window) : 0;
    a.end = place + 1;
    a.bias_query = 2 * s_.reach - 1;
    if (s_.bias) a.bias = s_.bias + h * group * a.bias_query + s_.reach - 1 + place;
    a.scratch = mine.scratch;
    layer_rows_.attend(a);
    return blocks;
  }

  // Attention to the memory, added to mine.x.
  void cross(int64_t layer, const Shared& b, const Mine& mine) const {
    const Layer& l = s_.layers[layer];
    const float* x = s_.norm_first ? norm(l.cross_norm, mine.x, mine.h) : mine.x;
    product(l.cross_query, x, s_.hidden, b.cross_query, mine);
#pragma omp barrier
    const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    const int64_t items = count() * s_.key_heads;
    for (int64_t i = items * me / all; i < items * (me + 1) / all; ++i)
      attend_memory(layer, i / s_.key_heads, i % s_.key_heads, b, mine);
#pragma omp barrier
    product(l.cross_output, b.mixed, s_.query_rows(), b.cross_output, mine);
#pragma omp barrier
    finish(l.cross_output, b.cross_output, Activation::none, mine.x, s_.hidden, mine.x);
    if (!s_.norm_first) norm(l.cross_norm, mine.x, mine.x);
  }

  void attend_memory(int64_t layer, int64_t t, int64_t h, const Shared& b, const Mine& mine) const {
    const int64_t group = s_.heads / s_.key_heads, sequence = tokens_[t].sequence;
    finish_rows(s_.layers[layer].cross_query, b.cross_query, t, h * group * s_.head,
                group * s_.head, Activation::none, nullptr, mine.q);
    for (int64_t i = 0; i < ceil_div(memory_->length(sequence), KvCache::kBlock); ++i) {
      mine.keys[i] = memory_->keys(layer, h, sequence, i);
      mine.values[i] = memory_->values(layer, h, sequence, i);
    }
    RowAttention a{};
    a.q = mine.q;
    a.y = b.mixed + t * s_.query_rows() + h * group * s_.head;
    a.queries = group;
    a.head = s_.head;
    a.scale = s_.scale;
    a.keys = mine.keys;
    a.values = mine.values;
    a.dtype = memory_->dtype();
    a.width = memory_->head_width();
    a.end = memory_->length(sequence);
    a.scratch = mine.scratch;
    layer_rows_.attend(a);
  }

  void turn(const Norm* norm, int64_t t, float* x) const {
    const int64_t half = s_.rotary.half;
    if (norm) layer_rows_.norm(x, s_.head, *norm, x);
    if (half)
      layer_rows_.rotate(x, half, s_.rotary.cosines + positions_[t] * half,
                         s_.rotary.sines + positions_[t] * half);
  }

  const Stack& s_;
  KvCache& cache_;
  const KvCache* memory_;
  const std::vector<Token>& tokens_;
  const int64_t* positions_;
  const Capabilities caps_;
  const LayerRowKernels& layer_rows_;
  const PanelIoKernels& panel_io_;
};

// The most that a layer's linear needs, and the work of a layer.
struct Needs {
  int64_t sums[Layer::kLinears] = {}, prepared = 0, work = 0;

  Needs(const Stack& stack, Capabilities caps) {
    for (const Layer& l : stack.layers) {
      int i = 0;
      for (const LayerLinear* b : l.linears()) {
        // Keys and values of a memory are never multiplied here.
        if (*b && b != &l.cross_key && b != &l.cross_value)
          with_row_work(*b->rows, caps, [&](const auto& work) {
            sums[i] = std::max(sums[i], rounded(work.sums()));
            prepared = std::max(prepared, prepared_bytes(work.w.in));
            this->work += work.work();
          });
        ++i;
      }
    }
    work /= std::max<int64_t>(1, static_cast<int64_t>(stack.layers.size()));
  }
};

Shared share(const Stack& s, const Needs& needs, int64_t tokens, int threads, Arena& arena) {
  Shared b;
  Sums* all[Layer::kLinears] = {&b.query, &b.key,  &b.value,       &b.output,
                                &b.gate,  &b.up,   &b.down,        &b.cross_query,
                                nullptr,  nullptr, &b.cross_output};
  for (int i = 0; i < Layer::kLinears; ++i) {
    if (!all[i]) continue;
    all[i]->stride = needs.sums[i];
    all[i]->sums = arena.take(tokens * needs.sums[i]);
    all[i]->scales = arena.take(threads * kRowTokens);
  }
  b.mixed = arena.take(tokens * s.query_rows());
  return b;
}

Mine own(const Stack& s, const Needs& needs, int64_t tokens, int64_t blocks, int64_t width,
         Arena& arena) {
  Mine mine;
  mine.x = arena.take(tokens * s.hidden);
  mine.h = arena.take(tokens * s.hidden);
  mine.inner = arena.take(tokens * s.inner);
  mine.q = arena.take(s.query_rows() / s.key_heads);
  mine.k = arena.take(s.head);
  mine.v = arena.take(s.head);
  mine.scratch = arena.take(row_attention_scratch(width));
  mine.prepared = reinterpret_cast<char*>(arena.take(kTokens * needs.prepared / 4));
  mine.keys = reinterpret_cast<const void**>(arena.take(2 * blocks));
  mine.values = reinterpret_cast<const void**>(arena.take(2 * blocks));
  return mine;
}

}  // namespace

void run_on_rows(const Stack& stack, const Batch& batch, Capabilities caps) {
  KvCache& cache = *batch.cache;
  std::vector<Token> tokens;
  int64_t blocks = 0;
  for (int64_t i = 0; i < cache.sequences(); ++i)
    for (int64_t t = 0; t < batch.lengths[i]; ++t) {
      tokens.push_back({i, cache.length(i) + t});
      blocks = std::max(blocks, ceil_div(tokens.back().place + 1, KvCache::kBlock));
      if (batch.memory)
        blocks = std::max(blocks, ceil_div(batch.memory->length(i), KvCache::kBlock));
    }
  const int64_t count = static_cast<int64_t>(tokens.size()), floats = count * stack.hidden;
  if (count == 0) return;
  const Needs needs(stack, caps);
  const int threads = threads_for(needs.work * count);
  Arena shared{nullptr}, mine{nullptr};  // measured first
  share(stack, needs, count, threads, shared);
  own(stack, needs, count, blocks, cache.head_width(), mine);
  const int64_t each = mine.used;
  shared = {shared_memory.get<float>(shared.used)};
  float* memory = thread_memory.get<float>(threads * each);
  const Shared b = share(stack, needs, count, threads, shared);
  const Rows rows(stack, cache, batch.memory, tokens, batch.positions, caps);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int64_t me = omp_get_thread_num();
    Arena arena{memory + me * each};
    const Mine m = own(stack, needs, count, blocks, cache.head_width(), arena);
    std::copy_n(batch.x, floats, m.x);
#pragma omp barrier  // y may be x
    for (int64_t l = 0; l < static_cast<int64_t>(stack.layers.size()); ++l) rows.layer(l, b, m);
    if (me == 0) {
      if (stack.last) rows.norm(*stack.last, m.x, m.x);
      std::copy_n(m.x, floats, batch.y);
    }
  }
  for (int64_t i = 0; i < cache.sequences(); ++i) cache.add(i, batch.lengths[i]);
}

}  // namespace se
