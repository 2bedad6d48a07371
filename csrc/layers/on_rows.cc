// Steps of a few tokens, as in decoding: activations are rows. Most of the time goes into reading
// the weights, of which each thread reads a share. Everything else is so little work that each
// thread computes it for itself, because a barrier would cost more: a layer has five barriers, each
// after a product or after attention.
#include <omp.h>

#include <algorithm>

#include "kernels/layer_rows/kernel.h"
#include "layers/row_buffers.h"
#include "layers/stack.h"
#include "ops/spmv.h"

namespace se {
namespace {

thread_local Workspace shared_memory, thread_memory;

// One of the new tokens, at `position` of its sequence (not the row of the rotary tables).
struct Token {
  int64_t sequence, position;
};

class RowStep {
 public:
  RowStep(const Stack& stack, KvCache& cache, const KvCache* memory,
          const std::vector<Token>& tokens, const int64_t* positions, const RowBuffers& buffers,
          Capabilities caps)
      : stack_(stack),
        cache_(cache),
        memory_(memory),
        tokens_(tokens),
        positions_(positions),
        b_(buffers),
        caps_(caps),
        kernels_(layer_rows(caps)),
        io_(panel_io(caps)) {}

  void run_layer(int64_t layer, const RowThreadBuffers& own) const {
    const Layer& l = stack_.layers[layer];
    project(l.attention, own);
    if (l.parallel) feed_forward(l.feed_forward, own);
    self_attention(layer, own);
    if (l.cross_attention) cross_attention(layer, own);
    if (!l.parallel) feed_forward(l.feed_forward, own);
  }

  void norm(const Norm& norm, const float* x, float* y) const {
    for (int64_t t = 0; t < count(); ++t)
      kernels_.norm(x + t * stack_.hidden, stack_.hidden, norm, y + t * stack_.hidden);
  }

 private:
  int64_t count() const { return static_cast<int64_t>(tokens_.size()); }

  // The input of a sublayer.
  const float* input_of(const SublayerNorms& norms, const RowThreadBuffers& own) const {
    if (!norms.input) return own.x;
    norm(*norms.input, own.x, own.h);
    return own.h;
  }

  // The end of a sublayer: its last product is added to the residual stream.
  void add_to_residual(const LayerLinear& linear, const SublayerNorms& norms, const float* input,
                       int64_t features, const ProductSums& sums,
                       const RowThreadBuffers& own) const {
    multiply(linear, input, features, sums, own);
#pragma omp barrier
    if (norms.output) {
      finish(linear, sums, Activation::none, nullptr, stack_.hidden, own.h);
      norm(*norms.output, own.h, own.h);
      for (int64_t i = 0; i < count() * stack_.hidden; ++i) own.x[i] += own.h[i];
    } else {
      finish(linear, sums, Activation::none, own.x, stack_.hidden, own.x);
    }
    if (norms.sum) norm(*norms.sum, own.x, own.x);
  }

  // This thread's share of the rows of linear x, for x [tokens][in].
  void multiply(const LayerLinear& linear, const float* x, int64_t in, const ProductSums& to,
                const RowThreadBuffers& own) const {
    with_row_work(*linear.rows, caps_, [&](const auto& work) {
      constexpr int64_t kAtOnce = std::decay_t<decltype(work)>::kAtOnce;
      const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
      const int64_t stride = prepared_bytes(in);
      for (int64_t t0 = 0; t0 < count(); t0 += kAtOnce) {
        const int64_t tokens = std::min(count() - t0, kAtOnce);
        for (int64_t t = 0; t < tokens; ++t)
          to.scales[me * kRowTokens + t0 + t] =
              work.prepare(x + (t0 + t) * in, own.prepared + t * stride);
        work.run(work.part(me, all), work.part(me + 1, all), own.prepared, stride, tokens,
                 to.sums + t0 * to.stride, to.stride);
      }
    });
  }

  // y [rows] = activation(sums x scales + bias) + residual, for rows from `row` on of token t.
  void finish_rows(const LayerLinear& linear, const ProductSums& from, int64_t t, int64_t row,
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
    io_.store_token(from.sums + t * from.stride + row,
                    from.scales[omp_get_thread_num() * kRowTokens + t], 0, rows, e);
  }

  void finish(const LayerLinear& linear, const ProductSums& from, Activation activation,
              const float* residual, int64_t features, float* y) const {
    for (int64_t t = 0; t < count(); ++t)
      finish_rows(linear, from, t, 0, features, activation,
                  residual ? residual + t * features : nullptr, y + t * features);
  }

  void feed_forward(const FeedForwardSublayer& f, const RowThreadBuffers& own) const {
    const float* x = input_of(f.norms, own);
    if (f.gate) multiply(f.gate, x, stack_.hidden, b_.gate, own);
    multiply(f.up, x, stack_.hidden, b_.up, own);
#pragma omp barrier
    const bool gated = f.gate || f.fused_gate;
    for (int64_t t = 0; t < count(); ++t)
      finish_rows(f.up, b_.up, t, f.up_rows() - f.inner, f.inner,
                  gated ? Activation::none : f.activation, nullptr, own.inner + t * f.inner);
    if (gated) multiply_by_gate(f, own);
    add_to_residual(f.down, f.norms, own.inner, f.inner, b_.down, own);
  }

  // inner = activation(gate) x inner, a part of the row at a time.
  void multiply_by_gate(const FeedForwardSublayer& f, const RowThreadBuffers& own) const {
    const LayerLinear& gate = f.gate ? f.gate : f.up;
    const ProductSums& sums = f.gate ? b_.gate : b_.up;
    constexpr int64_t kPart = 256;
    float part[kPart];
    for (int64_t t = 0; t < count(); ++t)
      for (int64_t row = 0; row < f.inner; row += kPart) {
        const int64_t n = std::min(f.inner - row, kPart);
        finish_rows(gate, sums, t, row, n, f.activation, nullptr, part);
        kernels_.multiply(part, n, own.inner + t * f.inner + row);
      }
  }

  // Sums of queries, keys and values, complete after the next barrier.
  void project(const AttentionSublayer& a, const RowThreadBuffers& own) const {
    const float* x = input_of(a.norms, own);
    multiply(a.query, x, stack_.hidden, b_.query, own);
    if (a.key) {
      multiply(a.key, x, stack_.hidden, b_.key, own);
      multiply(a.value, x, stack_.hidden, b_.value, own);
    }
  }

  void self_attention(int64_t layer, const RowThreadBuffers& own) const {
    const AttentionSublayer& a = stack_.layers[layer].attention;
#pragma omp barrier
    // A thread computes some key heads of the sequences, with all query heads that read them: no
    // other thread reads their new keys and values.
    const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    const int64_t items = cache_.sequences() * a.key_heads;
    for (int64_t i = items * me / all; i < items * (me + 1) / all; ++i) {
      int64_t pages = 0;
      for (int64_t t = 0; t < count(); ++t)
        if (tokens_[t].sequence == i / a.key_heads)
          pages = attend(layer, t, i % a.key_heads, pages, own);
    }
#pragma omp barrier
    add_to_residual(a.output, a.norms, b_.mixed, a.query_rows(), b_.output, own);
  }

  // Attention of token t to its sequence, for one key head. own.keys and values hold the first
  // `known` pages; returns how many they hold afterwards.
  int64_t attend(int64_t layer, int64_t t, int64_t h, int64_t known,
                 const RowThreadBuffers& own) const {
    const AttentionSublayer& a = stack_.layers[layer].attention;
    const Token& token = tokens_[t];
    const int64_t group = a.group(), size = a.head_size, end = token.position + 1;
    // Without linears of their own, keys and values are rows of the query's product.
    const LayerLinear& key = a.key ? a.key : a.query;
    const LayerLinear& value = a.key ? a.value : a.query;
    const int64_t key_row = a.key ? h * size : a.key_row(h);
    const int64_t value_row = a.key ? h * size : a.value_row(h);

    finish_rows(key, a.key ? b_.key : b_.query, t, key_row, size, Activation::none, nullptr, own.k);
    rotate_head(a, a.key_norm, t, own.k);
    finish_rows(value, a.key ? b_.value : b_.query, t, value_row, size, Activation::none, nullptr,
                own.v);
    cache_.write(layer, h, token.sequence, token.position, 1, own.k, own.v, 1);
    finish_rows(a.query, b_.query, t, a.query_row(h * group), group * size, Activation::none,
                nullptr, own.q);
    for (int64_t g = 0; g < group; ++g) rotate_head(a, a.query_norm, t, own.q + g * size);

    const int64_t pages = ceil_div(end, KvCache::kPagePositions);
    read_pages(cache_, layer, h, token.sequence, known, pages, own);
    RowAttention attention = attention_of(a, cache_, layer, t, h, own);
    attention.begin = a.window ? std::max<int64_t>(0, end - a.window) : 0;
    attention.end = end;
    if (const PositionBias* bias = a.position_bias) {
      attention.bias = bias->of_head(h * group) + token.position;
      attention.bias_query = bias->row_size();
    }
    kernels_.attend(attention);
    return pages;
  }

  static void read_pages(const KvCache& cache, int64_t layer, int64_t key_head, int64_t sequence,
                         int64_t begin, int64_t end, const RowThreadBuffers& own) {
    for (int64_t i = begin; i < end; ++i) {
      own.keys[i] = cache.keys(layer, key_head, sequence, i);
      own.values[i] = cache.values(layer, key_head, sequence, i);
    }
  }

  // The queries of token t that read key head h, and where their output goes.
  RowAttention attention_of(const AttentionSublayer& a, const KvCache& cache, int64_t layer,
                            int64_t t, int64_t h, const RowThreadBuffers& own) const {
    RowAttention attention{};
    attention.q = own.q;
    attention.y = b_.mixed + t * a.query_rows() + h * a.group() * a.head_size;
    attention.queries = a.group();
    attention.head = a.head_size;
    attention.scale = a.scale;
    attention.soft_cap = a.soft_cap;
    attention.keys = own.keys;
    attention.values = own.values;
    attention.dtype = cache.dtype();
    attention.width = cache.value_stride(layer);
    attention.scratch = own.scratch;
    return attention;
  }

  // Attention to the memory.
  void cross_attention(int64_t layer, const RowThreadBuffers& own) const {
    const AttentionSublayer& a = stack_.layers[layer].cross_attention;
    multiply(a.query, input_of(a.norms, own), stack_.hidden, b_.cross_query, own);
#pragma omp barrier
    const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    const int64_t items = count() * a.key_heads;
    for (int64_t i = items * me / all; i < items * (me + 1) / all; ++i)
      attend_to_memory(layer, i / a.key_heads, i % a.key_heads, own);
#pragma omp barrier
    add_to_residual(a.output, a.norms, b_.mixed, a.query_rows(), b_.cross_output, own);
  }

  void attend_to_memory(int64_t layer, int64_t t, int64_t h, const RowThreadBuffers& own) const {
    const AttentionSublayer& a = stack_.layers[layer].cross_attention;
    const int64_t sequence = tokens_[t].sequence, rows = a.group() * a.head_size;
    finish_rows(a.query, b_.cross_query, t, h * rows, rows, Activation::none, nullptr, own.q);
    RowAttention attention = attention_of(a, *memory_, layer, t, h, own);
    attention.end = memory_->length(sequence);
    read_pages(*memory_, layer, h, sequence, 0, ceil_div(attention.end, KvCache::kPagePositions),
               own);
    kernels_.attend(attention);
  }

  void rotate_head(const AttentionSublayer& a, const Norm* norm, int64_t t, float* x) const {
    if (norm) kernels_.norm(x, a.head_size, *norm, x);
    if (a.rotary < 0) return;
    const RotaryTable& table = stack_.rotary_tables[a.rotary];
    const int64_t row = positions_[t] * table.half;
    kernels_.rotate(x, table.half, table.cosines + row, table.sines + row);
  }

  const Stack& stack_;
  KvCache& cache_;
  const KvCache* memory_;
  const std::vector<Token>& tokens_;
  const int64_t* positions_;
  const RowBuffers& b_;
  const Capabilities caps_;
  const LayerRowKernels& kernels_;
  const PanelIoKernels& io_;
};

}  // namespace

void run_on_rows(const Stack& stack, const Batch& batch, Capabilities caps) {
  KvCache& cache = *batch.cache;
  std::vector<Token> tokens;
  int64_t longest = 0;  // sequence that a token reads
  for (int64_t i = 0; i < cache.sequences(); ++i) {
    if (batch.lengths[i] == 0) continue;
    for (int64_t t = 0; t < batch.lengths[i]; ++t) tokens.push_back({i, cache.length(i) + t});
    longest = std::max(longest, cache.length(i) + batch.lengths[i]);
    if (batch.memory) longest = std::max(longest, batch.memory->length(i));
  }
  const int64_t count = static_cast<int64_t>(tokens.size()), floats = count * stack.hidden;
  if (count == 0) return;
  const int64_t pages = ceil_div(longest, KvCache::kPagePositions);
  const LargestLayer largest(stack);
  const RowNeeds needs(stack, caps);
  const int threads = threads_for(needs.work * count);
  Arena measured{nullptr}, one{nullptr};
  take_row_buffers(largest, needs, count, threads, measured);
  take_row_thread_buffers(stack.hidden, largest, needs, count, pages, one);
  Arena shared{shared_memory.get<float>(measured.used)};
  float* own_memory = thread_memory.get<float>(threads * one.used);
  const RowBuffers b = take_row_buffers(largest, needs, count, threads, shared);
  const RowStep step(stack, cache, batch.memory, tokens, batch.positions, b, caps);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int64_t me = omp_get_thread_num();
    Arena arena{own_memory + me * one.used};
    const RowThreadBuffers own =
        take_row_thread_buffers(stack.hidden, largest, needs, count, pages, arena);
    std::copy_n(batch.x, floats, own.x);
#pragma omp barrier  // y may be x
    for (int64_t l = 0; l < static_cast<int64_t>(stack.layers.size()); ++l) step.run_layer(l, own);
    if (me == 0) {
      if (stack.final_norm) step.norm(*stack.final_norm, own.x, own.x);
      std::copy_n(own.x, floats, batch.y);
    }
  }
  for (int64_t i = 0; i < cache.sequences(); ++i) cache.add(i, batch.lengths[i]);
}

}  // namespace se
