// A pass of panels, layer by layer: each stage by one thread or by all together (PanelRange).
#pragma once

#include <algorithm>
#include <initializer_list>
#include <limits>

#include "kernels/spmm_tiles/kernel.h"
#include "layers/panel_buffers.h"
#include "layers/panel_inputs.h"
#include "layers/panel_layout.h"
#include "layers/stack.h"

namespace se {

class PanelPass {
 public:
  PanelPass(const Stack& stack, KvCache* cache, const KvCache* memory, const PanelLayout& layout,
            const PanelBuffers& buffers, Capabilities caps, int threads)
      : stack_(stack),
        cache_(cache),
        memory_(memory),
        layout_(layout),
        b_(buffers),
        caps_(caps),
        threads_(threads),
        kernels_(layer_panels(caps)) {}

  void run_layer(int64_t layer, const PanelRange& range, const PanelThreadBuffers& own) const {
    range.for_ranges([&](const PanelRange& part) { project(layer, part, own); });
    if (range.one_thread) {
      // Attention reads keys of other threads' panels.
#pragma omp barrier
    }
    range.for_ranges([&](const PanelRange& part) {
      const Layer& l = stack_.layers[layer];
      // Queries, keys and values are computed already, so the feed-forward may go first.
      if (l.parallel) feed_forward(l.feed_forward, part, own);
      self_attention(layer, part, own);
      if (l.cross_attention) cross_attention(layer, part, own);
      if (!l.parallel) feed_forward(l.feed_forward, part, own);
    });
  }

  // Writes the keys and values of the layer's cross attention to the cache.
  void encode_memory(int64_t layer, const PanelRange& range, const PanelThreadBuffers& own) const {
    const AttentionSublayer& a = stack_.layers[layer].cross_attention;
    const PanelBuffer& kv = b_.qkv[layer % 2];
    range.for_ranges([&](const PanelRange& part) {
      prepare({&a.key, &a.value}, part, b_.x, stack_.hidden);
      multiply(a.key, part, b_.x, {kv}, own, false);
      multiply(a.value, part, b_.x, {kv, a.key_rows()}, own, true);
      part.for_items(part.panels() * a.key_heads, true, [&](int64_t i) {
        const int64_t p = part.first + i / a.key_heads, h = i % a.key_heads;
        const float* k = kv.panel(p) + h * a.head_size * layout_.width(p);
        append_to_cache(layer, p, h, k, k + a.key_rows() * layout_.width(p));
      });
    });
  }

 private:
  // Where the rows of a product go.
  struct Output {
    const PanelBuffer& y;
    int64_t row = 0;  // of y, for the first row of the product
    Activation activation = Activation::none;
    const PanelBuffer* other = nullptr;  // added to the product, or multiplied with it
    bool times = false;
  };

  // The input of a sublayer.
  const PanelBuffer& input_of(const SublayerNorms& norms, const PanelRange& range) const {
    if (!norms.input) return b_.x;
    norm(*norms.input, range, b_.x, b_.h);
    return b_.h;
  }

  // The end of a sublayer: its last product is added to the residual stream.
  void add_to_residual(const LayerLinear& linear, const SublayerNorms& norms,
                       const PanelRange& range, const PanelBuffer& input, int64_t features,
                       const PanelThreadBuffers& own) const {
    prepare({&linear}, range, input, features);
    if (norms.output) {
      multiply(linear, range, input, {b_.h}, own, true);
      norm(*norms.output, range, b_.h, b_.h);
      range.for_items(range.panels(), true, [&](int64_t i) {
        const int64_t p = range.first + i;
        float* x = b_.x.panel(p);
        kernels_.finish({b_.h.panel(p), layout_.width(p), nullptr}, stack_.hidden,
                        {Activation::none, nullptr, nullptr, x, false, x});
      });
    } else {
      multiply(linear, range, input, {b_.x, 0, Activation::none, &b_.x}, own, true);
    }
    if (norms.sum) norm(*norms.sum, range, b_.x, b_.x);
  }

  // Queries, keys and values: all that the panels of a sequence need of each other.
  void project(int64_t layer, const PanelRange& range, const PanelThreadBuffers& own) const {
    const AttentionSublayer& a = stack_.layers[layer].attention;
    const PanelBuffer &x = input_of(a.norms, range), &qkv = b_.qkv[layer % 2];
    prepare({&a.query, &a.key, &a.value}, range, x, stack_.hidden);
    multiply(a.query, range, x, {qkv}, own, !a.key);
    if (a.key) {
      multiply(a.key, range, x, {qkv, a.query_rows()}, own, false);
      multiply(a.value, range, x, {qkv, a.query_rows() + a.key_rows()}, own, true);
    }
    if (cache_ || a.rotary >= 0 || a.query_norm || a.key_norm) rotate_and_cache(layer, range, qkv);
  }

  // Queries and keys are normed and rotated in place. With a cache, keys and values are appended.
  void rotate_and_cache(int64_t layer, const PanelRange& range, const PanelBuffer& qkv) const {
    const AttentionSublayer& a = stack_.layers[layer].attention;
    range.for_items(range.panels() * a.key_heads, true, [&](int64_t i) {
      const int64_t p = range.first + i / a.key_heads, h = i % a.key_heads;
      const int64_t width = layout_.width(p);
      float* panel = qkv.panel(p);
      for (int64_t g = h * a.group(); g < (h + 1) * a.group(); ++g)
        rotate_head(a, p, a.query_norm, panel + a.query_row(g) * width);
      float *k = panel + a.key_row(h) * width, *v = panel + a.value_row(h) * width;
      rotate_head(a, p, a.key_norm, k);
      if (cache_) append_to_cache(layer, p, h, k, v);
    });
  }

  // One head of panel p.
  void rotate_head(const AttentionSublayer& a, int64_t p, const Norm* norm, float* x) const {
    const int64_t width = layout_.width(p);
    if (norm) kernels_.norm(x, width, a.head_size, width, *norm, x);
    if (a.rotary < 0) return;
    const PanelBuffers::Angles& angles = b_.angles[a.rotary];
    kernels_.rotate(x, width, stack_.rotary_tables[a.rotary].half, width, angles.cosines.panel(p),
                    angles.sines.panel(p));
  }

  // The keys and values of one head of panel p.
  void append_to_cache(int64_t layer, int64_t p, int64_t key_head, const float* k,
                       const float* v) const {
    for (int64_t j = layout_.first_of_panel[p]; j < layout_.first_of_panel[p + 1]; ++j) {
      const Segment& s = layout_.segments[j];
      cache_->write(layer, key_head, s.sequence, s.position, s.queries, k + s.lane, v + s.lane,
                    layout_.width(p));
    }
  }

  void self_attention(int64_t layer, const PanelRange& range, const PanelThreadBuffers& own) const {
    const AttentionSublayer& a = stack_.layers[layer].attention;
    const PanelBuffer& qkv = b_.qkv[layer % 2];
    for_heads(a, range, [&](const Segment& s, int64_t h) { attend(layer, s, h, qkv, own); });
    add_to_residual(a.output, a.norms, range, b_.mixed, a.query_rows(), own);
  }

  // Attention to the memory.
  void cross_attention(int64_t layer, const PanelRange& range,
                       const PanelThreadBuffers& own) const {
    const AttentionSublayer& a = stack_.layers[layer].cross_attention;
    const PanelBuffer& x = input_of(a.norms, range);
    // Other threads may still read the keys of this layer. The buffer of the next one is free.
    const PanelBuffer& queries = b_.qkv[(layer + 1) % 2];
    prepare({&a.query}, range, x, stack_.hidden);
    multiply(a.query, range, x, {queries}, own, true);
    for_heads(a, range,
              [&](const Segment& s, int64_t h) { attend_to_memory(layer, s, h, queries, own); });
    add_to_residual(a.output, a.norms, range, b_.mixed, a.query_rows(), own);
  }

  void feed_forward(const FeedForwardSublayer& f, const PanelRange& range,
                    const PanelThreadBuffers& own) const {
    const PanelBuffer& x = input_of(f.norms, range);
    prepare({&f.gate, &f.up}, range, x, stack_.hidden);
    if (f.gate) {
      multiply(f.gate, range, x, {b_.inner, 0, f.activation}, own, true);
      multiply(f.up, range, x, {b_.inner, 0, Activation::none, &b_.inner, true}, own, true);
    } else if (f.fused_gate) {
      multiply(f.up, range, x, {b_.inner}, own, true);
      multiply_by_gate(f, range);
    } else {
      multiply(f.up, range, x, {b_.inner, 0, f.activation}, own, true);
    }
    add_to_residual(f.down, f.norms, range, b_.inner, f.inner, own);
  }

  // inner = activation(gate) x up, of which `inner` holds one after the other.
  void multiply_by_gate(const FeedForwardSublayer& f, const PanelRange& range) const {
    constexpr int64_t kRows = 64;
    const int64_t chunks = ceil_div(f.inner, kRows);
    range.for_items(range.panels() * chunks, true, [&](int64_t i) {
      const int64_t p = range.first + i / chunks, row = i % chunks * kRows;
      const int64_t width = layout_.width(p);
      float* gate = b_.inner.panel(p) + row * width;
      kernels_.finish({gate, width, nullptr}, std::min(f.inner - row, kRows),
                      {f.activation, nullptr, nullptr, gate + f.inner * width, true, gate});
    });
  }

  // Converts the input of products whose weights do not read panels of floats.
  void prepare(std::initializer_list<const LayerLinear*> linears, const PanelRange& range,
               const PanelBuffer& x, int64_t features) const {
    PanelInputs inputs;
    for (const LayerLinear* linear : linears)
      if (*linear) inputs.add(*linear->panels, caps_);
    convert_inputs(inputs, range, layout_, b_, kernels_, x, features);
  }

  void multiply(const LayerLinear& linear, const PanelRange& range, const PanelBuffer& x,
                const Output& out, const PanelThreadBuffers& own, bool wait) const {
    if (const Tiles* tiles = std::get_if<Tiles>(linear.panels))
      return multiply(*tiles, linear.bias, range, out, own, wait);
    with_layer_work(*linear.panels, caps_, threads_, [&](const auto& work) {
      multiply(work, linear.bias, range, x, out, own, wait);
    });
  }

  void multiply(const Tiles& w, const float* bias, const PanelRange& range, const Output& out,
                const PanelThreadBuffers& own, bool wait) const {
    const SpmmTilesKernel& kernel = spmm_tiles(w.dtype, caps_);
    const bool int8 = w.dtype == DType::i8;
    const PanelBuffer& tiles = int8 ? b_.byte_tiles : b_.tiles;
    const int64_t group = w.columns_of_tiles() * 256;  // floats of 16 tokens
    range.for_items(range.panels() * w.bands, wait, [&](int64_t i) {
      const int64_t p = range.first + i / w.bands, b = i % w.bands, row = b * Tiles::kBand;
      const int64_t width = layout_.width(p), groups = width / 16;
      const TileSpan span{w.entries[b], w.entries[b + 1], w.tiles[b], w.starts[b]};
      for (int64_t g = 0; g < groups; g += 2) {
        const TokenTiles x{tiles.panel(p) + g * group, 0, std::min<int64_t>(2, groups - g)};
        kernel.run(w, span, x, g == 0, false, own.band, own.band_sums);
        for (int64_t j = 0; j < x.groups; ++j)
          kernels_.tiles_to_lanes(own.band_sums + j * 16 * Tiles::kBand, width,
                                  own.sums + (g + j) * 16);
      }
      const int64_t at = (out.row + row) * width;
      kernels_.finish(
          {own.sums, width, int8 ? b_.scales.panel(p) : nullptr},
          std::min(Tiles::kBand, w.out - row),
          {out.activation, int8 ? w.scales + row : nullptr, bias ? bias + row : nullptr,
           out.other ? out.other->panel(p) + at : nullptr, out.times, out.y.panel(p) + at});
    });
  }

  // The outer loop runs over panels: a panel stays in the cache while the weights, which are fewer
  // bytes, are read again.
  template <class Work>
  void multiply(const Work& work, const float* bias, const PanelRange& range, const PanelBuffer& x,
                const Output& out, const PanelThreadBuffers& own, bool wait) const {
    const float* scales = work.row_scales();
    const PanelBuffer& input = b_.of(work.kernel.panel, x);
    const int64_t chunks = work.chunks();
    range.for_items(range.panels() * chunks, wait, [&](int64_t i) {
      const int64_t p = range.first + i / chunks, c = i % chunks, width = layout_.width(p);
      multiply_chunk(work, kernels_, c, input.panel(p), scales ? b_.scales.panel(p) : nullptr,
                     width,
                     {out.activation, scales, bias,
                      out.other ? out.other->panel(p) + out.row * width : nullptr, out.times,
                      out.y.panel(p) + out.row * width},
                     own.sums);
    });
  }

  void norm(const Norm& norm, const PanelRange& range, const PanelBuffer& x,
            const PanelBuffer& y) const {
    for_lanes(range, layout_, [&](int64_t p, int64_t lane) {
      kernels_.norm(x.panel(p) + lane, layout_.width(p), stack_.hidden, 16, norm,
                    y.panel(p) + lane);
    });
  }

  // f(segment, query head), for all of them.
  template <class F>
  void for_heads(const AttentionSublayer& a, const PanelRange& range, F f) const {
    const int64_t begin = layout_.first_of_panel[range.first];
    const int64_t end = layout_.first_of_panel[range.last];
    range.for_items((end - begin) * a.heads, true,
                    [&](int64_t i) { f(layout_.segments[begin + i / a.heads], i % a.heads); });
  }

  // The keys and values of a sequence that this pass computed, in their panels: of the segments
  // that have positions from `begin` to `end`. Sets `begin` to the first position of these.
  int64_t new_keys(const AttentionSublayer& a, const Segment& s, int64_t key_head, int64_t& begin,
                   int64_t end, const PanelBuffer& qkv, KeySpan* spans) const {
    int64_t count = 0;
    for (int64_t i = s.first_segment; i < s.first_segment + s.segments; ++i) {
      const Segment& from = layout_.segments[i];
      if (from.position + from.queries <= begin) continue;
      if (from.position >= end) break;
      if (count == 0) begin = from.position;
      const int64_t width = layout_.width(from.panel);
      const float* lane = qkv.panel(from.panel) + from.lane;
      spans[count++] = {lane + a.key_row(key_head) * width,
                        lane + a.value_row(key_head) * width,
                        DType::f32,
                        width,
                        width,
                        1,
                        from.queries};
    }
    return count;
  }

  // The keys and values of a cache from position `first`, where a page begins, to `end`.
  static int64_t cached_keys(const KvCache& cache, int64_t layer, int64_t sequence,
                             int64_t key_head, int64_t first, int64_t end, KeySpan* spans) {
    constexpr int64_t kPage = KvCache::kPagePositions;
    int64_t count = 0;
    for (int64_t at = first; at < end; at += kPage)
      spans[count++] = {cache.keys(layer, key_head, sequence, at / kPage),
                        cache.values(layer, key_head, sequence, at / kPage),
                        cache.dtype(),
                        kPage,
                        1,
                        cache.value_stride(layer),
                        std::min(kPage, end - at)};
    return count;
  }

  // One head's queries of a segment, and where its output goes.
  Attention attention_of(const AttentionSublayer& a, const Segment& s, int64_t h,
                         const PanelBuffer& queries, const PanelThreadBuffers& own) const {
    const int64_t width = layout_.width(s.panel);
    Attention attention{};
    attention.q = queries.panel(s.panel) + a.query_row(h) * width + s.lane;
    attention.y = b_.mixed.panel(s.panel) + h * a.head_size * width + s.lane;
    attention.stride = width;
    attention.queries = s.queries;
    attention.head = a.head_size;
    attention.scale = a.scale;
    attention.soft_cap = a.soft_cap;
    attention.spans = own.spans;
    attention.scratch = own.scratch;
    return attention;
  }

  // In bf16 where the weights are.
  void attend(const AttentionSublayer& a, const Attention& attention) const {
    const bool bf16 =
        std::visit([](const auto& w) { return w.dtype; }, *a.query.panels) == DType::bf16;
    (bf16 ? kernels_.attend_bf16 : kernels_.attend)(attention);
  }

  void attend(int64_t layer, const Segment& s, int64_t h, const PanelBuffer& qkv,
              const PanelThreadBuffers& own) const {
    constexpr int64_t kPage = KvCache::kPagePositions;
    const AttentionSublayer& a = stack_.layers[layer].attention;
    const int64_t key_head = h / a.group();
    // Keys before the window of the first query and after that of the last are left out, as far as
    // they fill pages or segments.
    int64_t first = a.window ? std::max<int64_t>(0, s.position + 1 - a.window) : 0;
    int64_t end = s.position + s.queries;
    if (!a.causal) end = a.window ? end + a.window - 1 : std::numeric_limits<int64_t>::max();
    if (cache_) first = first / kPage * kPage;
    Attention attention = attention_of(a, s, h, qkv, own);
    attention.count = cache_
                          ? cached_keys(*cache_, layer, s.sequence, key_head, first, end, own.spans)
                          : new_keys(a, s, key_head, first, end, qkv, own.spans);
    attention.causal = a.causal;
    attention.first_query = s.position - first;
    attention.window = a.window;
    if (a.position_bias) attention.bias = a.position_bias->of_head(h);
    attend(a, attention);
  }

  void attend_to_memory(int64_t layer, const Segment& s, int64_t h, const PanelBuffer& queries,
                        const PanelThreadBuffers& own) const {
    const AttentionSublayer& a = stack_.layers[layer].cross_attention;
    Attention attention = attention_of(a, s, h, queries, own);
    attention.count = cached_keys(*memory_, layer, s.sequence, h / a.group(), 0,
                                  memory_->length(s.sequence), own.spans);
    attend(a, attention);
  }

  const Stack& stack_;
  KvCache* cache_;
  const KvCache* memory_;
  const PanelLayout& layout_;
  const PanelBuffers& b_;
  const Capabilities caps_;
  const int threads_;
  const LayerPanelKernels& kernels_;
};

}  // namespace se
