// A pass of panels through the layers of a stack: one thread or all of them take it through each
// stage.
#pragma once

#include <omp.h>

#include <algorithm>
#include <initializer_list>

#include "layers/cut.h"
#include "layers/stack.h"

namespace se {

// The activations of a pass, [panels][features][width] each.
struct PanelBuffers {
  float *x, *h, *mixed, *inner;
  float *quads, *scales;   // of a product with int8 weights; a slot a panel, or a thread if alone
  float* qkv[2];           // in turns: a thread may be a layer ahead of the one that still reads
  float *cosines, *sines;  // [panels][rotary.half][width]
};

// What a thread needs for itself.
struct PanelMine {
  float *sums, *scratch;
  KeySpan* spans;
};

// Who takes panels [first, last) through a stage: all threads together, or one alone.
struct Team {
  bool alone;
  int64_t first, last;

  Team only(int64_t p) const { return {alone, p, p + 1}; }
  int64_t panels() const { return last - first; }

  template <class F>
  void share(int64_t items, bool wait, F f) const {
    if (alone) {
      for (int64_t i = 0; i < items; ++i) f(i);
      return;
    }
#pragma omp for schedule(dynamic) nowait
    for (int64_t i = 0; i < items; ++i) f(i);
    if (wait) {
#pragma omp barrier
    }
  }
};

struct Target {
  float* y;
  int64_t features, row;  // of y; where the rows of this product begin
  Activation activation;
  const float* other;  // like y
  bool multiply;
};

class PanelPass {
 public:
  PanelPass(const Stack& stack, KvCache* cache, const KvCache* memory, const Cut& cut,
            const PanelBuffers& buffers, Capabilities caps, int threads)
      : s_(stack),
        cache_(cache),
        memory_(memory),
        cut_(cut),
        b_(buffers),
        caps_(caps),
        threads_(threads),
        layer_panels_(layer_panels(caps)) {}

  // The layer's keys and values of an encoder's states, into the cache: all that `remember` is.
  void memorize(int64_t layer, const Team& team, const PanelMine& mine) const {
    if (team.alone && team.panels() != 1) {
      for (int64_t p = team.first; p < team.last; ++p) memorize(layer, team.only(p), mine);
      return;
    }
    const Layer& l = s_.layers[layer];
    float* qkv = b_.qkv[layer % 2];
    quantize({l.cross_key, l.cross_value}, team, b_.x, s_.hidden);
    const auto to = [&](int64_t row) {
      return Target{qkv, s_.qkv_rows(), row, Activation::none, nullptr, false};
    };
    product(l.cross_key, team, b_.x, s_.hidden, to(s_.query_rows()), mine, false);
    product(l.cross_value, team, b_.x, s_.hidden, to(s_.query_rows() + s_.key_rows()), mine, true);
    team.share(team.panels() * s_.key_heads, true, [&](int64_t i) {
      const int64_t p = team.first + i / s_.key_heads, h = i % s_.key_heads;
      const int64_t width = cut_.width(p), rows = s_.head * width;
      const float* k = panel(qkv, p, s_.qkv_rows()) + (s_.heads + h) * rows;
      for (int64_t j = cut_.begin[p]; j < cut_.begin[p + 1]; ++j)
        keep(layer, h, cut_.segments[j], width, k, k + s_.key_heads * rows);
    });
  }

  void layer(int64_t i, const Team& team, const PanelMine& mine) const {
    float* qkv = b_.qkv[i % 2];
    if (!team.alone) {
      project(i, team, qkv, mine);
      return rest(i, team, qkv, b_.inner, mine);
    }
    for (int64_t p = team.first; p < team.last; ++p) project(i, team.only(p), qkv, mine);
#pragma omp barrier
    for (int64_t p = team.first; p < team.last; ++p) {
      float* inner = b_.inner + (omp_get_thread_num() - p) * cut_.widest * s_.inner;
      rest(i, team.only(p), qkv, inner, mine);
    }
  }

 private:
  bool int8(const LayerLinear& linear) const {
    const Runs* runs = linear ? std::get_if<Runs>(linear.panels) : nullptr;
    return runs && runs->dtype == DType::i8;
  }
  template <class T>
  T* panel(T* data, int64_t p, int64_t features) const {
    return data + p * cut_.widest * features;
  }

  // Up to queries, keys and values: all that other panels of a sequence need.
  void project(int64_t layer, const Team& team, float* qkv, const PanelMine& mine) const {
    const Layer& l = s_.layers[layer];
    const float* x = b_.x;
    if (s_.norm_first) {
      norm(l.norm1, team, b_.x, b_.h);
      x = b_.h;
    }
    quantize({l.query, l.key, l.value}, team, x, s_.hidden);
    const auto to = [&](int64_t row) {
      return Target{qkv, s_.qkv_rows(), row, Activation::none, nullptr, false};
    };
    product(l.query, team, x, s_.hidden, to(0), mine, !l.key);
    if (l.key) {
      product(l.key, team, x, s_.hidden, to(s_.query_rows()), mine, false);
      product(l.value, team, x, s_.hidden, to(s_.query_rows() + s_.key_rows()), mine, true);
    }
    if (cache_ || s_.rotary.half || l.query_norm || l.key_norm) place(layer, team, qkv);
  }

  // Queries and keys are normed and turned where they lie; keys and values go into the cache.
  void place(int64_t layer, const Team& team, float* qkv) const {
    const Layer& l = s_.layers[layer];
    const int64_t group = s_.heads / s_.key_heads;
    team.share(team.panels() * s_.key_heads, true, [&](int64_t i) {
      const int64_t p = team.first + i / s_.key_heads, h = i % s_.key_heads;
      const int64_t width = cut_.width(p), rows = s_.head * width;
      float* at = panel(qkv, p, s_.qkv_rows());
      for (int64_t g = h * group; g < (h + 1) * group; ++g) turn(p, l.query_norm, at + g * rows);
      float *k = at + (s_.heads + h) * rows, *v = k + s_.key_heads * rows;
      turn(p, l.key_norm, k);
      if (!cache_) return;
      for (int64_t j = cut_.begin[p]; j < cut_.begin[p + 1]; ++j)
        keep(layer, h, cut_.segments[j], width, k, v);
    });
  }

  // One head of panel p.
  void turn(int64_t p, const Norm* norm, float* x) const {
    const int64_t width = cut_.width(p), half = s_.rotary.half;
    if (norm) layer_panels_.norm(x, width, s_.head, width, *norm, x);
    if (half)
      layer_panels_.rotate(x, width, half, width, panel(b_.cosines, p, half),
                           panel(b_.sines, p, half));
  }

  // Keys and values of one head and segment, into the cache.
  void keep(int64_t layer, int64_t h, const Segment& s, int64_t width, const float* k,
            const float* v) const {
    cache_->write(layer, h, s.sequence, s.position, s.queries, k + s.lane, v + s.lane, width);
  }

  // From attention to the end of the layer.
  void rest(int64_t layer, const Team& team, float* qkv, float* inner,
            const PanelMine& mine) const {
    const Layer& l = s_.layers[layer];
    attention(layer, team, qkv, mine);
    quantize({l.output}, team, b_.mixed, s_.query_rows());
    float* sum = s_.norm_first ? b_.x : b_.h;
    product(l.output, team, b_.mixed, s_.query_rows(),
            {sum, s_.hidden, 0, Activation::none, b_.x, false}, mine, true);
    norm(!s_.norm_first ? l.norm1 : l.cross_query ? l.cross_norm : l.norm2, team, sum, b_.h);
    if (l.cross_query) cross(layer, team, qkv, sum, mine);
    quantize({l.gate, l.up}, team, b_.h, s_.hidden);
    if (l.gate)
      product(l.gate, team, b_.h, s_.hidden, {inner, s_.inner, 0, s_.activation, nullptr, false},
              mine, true);
    product(l.up, team, b_.h, s_.hidden,
            {inner, s_.inner, 0, l.gate ? Activation::none : s_.activation,
             l.gate ? inner : nullptr, true},
            mine, true);
    quantize({l.down}, team, inner, s_.inner);
    product(l.down, team, inner, s_.inner, {b_.x, s_.hidden, 0, Activation::none, sum, false}, mine,
            true);
    if (!s_.norm_first) norm(l.norm2, team, b_.x, b_.x);
  }

  // Attention to the memory, from b_.h; sums are added to `sum`. Leaves in b_.h what comes next.
  // Queries lie where those of self-attention lay, which nobody needs any more.
  void cross(int64_t layer, const Team& team, float* qkv, float* sum, const PanelMine& mine) const {
    const Layer& l = s_.layers[layer];
    quantize({l.cross_query}, team, b_.h, s_.hidden);
    product(l.cross_query, team, b_.h, s_.hidden,
            {qkv, s_.qkv_rows(), 0, Activation::none, nullptr, false}, mine, true);
    const int64_t begin = cut_.begin[team.first], end = cut_.begin[team.last];
    team.share((end - begin) * s_.heads, true, [&](int64_t i) {
      attend_memory(layer, cut_.segments[begin + i / s_.heads], i % s_.heads, qkv, mine);
    });
    quantize({l.cross_output}, team, b_.mixed, s_.query_rows());
    product(l.cross_output, team, b_.mixed, s_.query_rows(),
            {sum, s_.hidden, 0, Activation::none, sum, false}, mine, true);
    norm(s_.norm_first ? l.norm2 : l.cross_norm, team, sum, b_.h);
  }

  int64_t slot(const Team& team, int64_t p) const { return team.alone ? omp_get_thread_num() : p; }
  int64_t quad_panel() const {
    return ceil_div(std::max({s_.hidden, s_.query_rows(), s_.inner}), 4) * cut_.widest;
  }

  // The input of products of which some have int8 weights.
  void quantize(std::initializer_list<LayerLinear> linears, const Team& team, const float* x,
                int64_t features) const {
    if (std::none_of(linears.begin(), linears.end(), [&](const LayerLinear& l) { return int8(l); }))
      return;
    const int64_t parts = cut_.widest / 16;
    team.share(team.panels() * parts, true, [&](int64_t i) {
      const int64_t p = team.first + i / parts, lane = i % parts * 16, to = slot(team, p);
      if (lane < cut_.width(p))
        layer_panels_.quantize(panel(x, p, features) + lane, cut_.width(p), features, 16,
                               b_.quads + to * quad_panel() + lane,
                               b_.scales + to * cut_.widest + lane);
    });
  }

  void product(const LayerLinear& linear, const Team& team, const float* x, int64_t in,
               const Target& to, const PanelMine& mine, bool wait) const {
    with_panel_work(*linear.panels, caps_, threads_, [&](const auto& work) {
      multiply(work, linear.bias, team, x, in, to, mine, wait);
    });
  }

  // Panels outside: a panel stays in the cache while the weights, which are fewer bytes, pass by.
  template <class Work>
  void multiply(const Work& work, const float* bias, const Team& team, const float* x, int64_t in,
                const Target& to, const PanelMine& mine, bool wait) const {
    const float* scales = work.row_scales();
    const int64_t chunks = work.chunks();
    team.share(team.panels() * chunks, wait, [&](int64_t i) {
      const int64_t p = team.first + i / chunks, c = i % chunks, width = cut_.width(p);
      const int64_t quads = slot(team, p);
      multiply_chunk(work, layer_panels_, c,
                     scales ? b_.quads + quads * quad_panel() : panel(x, p, in),
                     scales ? b_.scales + quads * cut_.widest : nullptr, width,
                     {to.activation, scales, bias,
                      to.other ? panel(to.other, p, to.features) + to.row * width : nullptr,
                      to.multiply, panel(to.y, p, to.features) + to.row * width},
                     mine.sums);
    });
  }

  void norm(const Norm& norm, const Team& team, const float* x, float* y) const {
    const int64_t parts = cut_.widest / 16;
    team.share(team.panels() * parts, true, [&](int64_t i) {
      const int64_t p = team.first + i / parts, lane = i % parts * 16, width = cut_.width(p);
      if (lane < width)
        layer_panels_.norm(panel(x, p, s_.hidden) + lane, width, s_.hidden, 16, norm,
                           panel(y, p, s_.hidden) + lane);
    });
  }

  void attention(int64_t layer, const Team& team, const float* qkv, const PanelMine& mine) const {
    const int64_t begin = cut_.begin[team.first], end = cut_.begin[team.last];
    team.share((end - begin) * s_.heads, true, [&](int64_t i) {
      attend(layer, cut_.segments[begin + i / s_.heads], i % s_.heads, qkv, mine);
    });
  }

  // The keys that this pass made, where they lie in the panels.
  int64_t new_keys(const Segment& s, int64_t key_head, int64_t seen, const float* qkv,
                   KeySpan* spans) const {
    int64_t count = 0;
    for (int64_t i = s.first; i < s.first + s.segments; ++i) {
      const Segment& from = cut_.segments[i];
      if (from.position >= seen) break;
      const int64_t width = cut_.width(from.panel);
      const float* k = panel(qkv, from.panel, s_.qkv_rows()) +
                       (s_.heads + key_head) * s_.head * width + from.lane;
      spans[count++] = {k, k + s_.key_rows() * width, DType::f32, width, width, 1, from.queries};
    }
    return count;
  }

  // The keys of a cache from `first`, where a block begins, to `end`.
  static int64_t cached_keys(const KvCache& cache, int64_t layer, int64_t sequence,
                             int64_t key_head, int64_t first, int64_t end, KeySpan* spans) {
    constexpr int64_t B = KvCache::kBlock;
    int64_t count = 0;
    for (int64_t at = first; at < end; at += B)
      spans[count++] = {cache.keys(layer, key_head, sequence, at / B),
                        cache.values(layer, key_head, sequence, at / B),
                        cache.dtype(),
                        B,
                        1,
                        cache.head_width(),
                        std::min(B, end - at)};
    return count;
  }

  // One head's queries of a segment, and where its output goes.
  Attention queries_of(const Segment& s, int64_t h, const float* qkv, const PanelMine& mine) const {
    const int64_t width = cut_.width(s.panel);
    Attention a{};
    a.q = panel(qkv, s.panel, s_.qkv_rows()) + h * s_.head * width + s.lane;
    a.y = panel(b_.mixed, s.panel, s_.query_rows()) + h * s_.head * width + s.lane;
    a.stride = width;
    a.queries = s.queries;
    a.head = s_.head;
    a.scale = s_.scale;
    a.spans = mine.spans;
    a.scratch = mine.scratch;
    return a;
  }

  void attend(int64_t layer, const Segment& s, int64_t h, const float* qkv,
              const PanelMine& mine) const {
    constexpr int64_t B = KvCache::kBlock;
    const int64_t key_head = h / (s_.heads / s_.key_heads), end = s.position + s.queries;
    // Blocks of the cache that lie before every query's window are left out.
    const int64_t unseen = s_.window ? std::max<int64_t>(0, s.position + 1 - s_.window) : 0;
    const int64_t first = cache_ ? unseen / B * B : 0;
    Attention a = queries_of(s, h, qkv, mine);
    a.count = cache_ ? cached_keys(*cache_, layer, s.sequence, key_head, first, end, mine.spans)
                     : new_keys(s, key_head, s_.causal ? end : end + (1 << 30), qkv, mine.spans);
    a.causal = s_.causal;
    a.first_query = s.position - first;
    a.window = s_.window;
    if (s_.bias) a.bias = s_.bias + h * (2 * s_.reach - 1) + s_.reach - 1;
    layer_panels_.attend(a);
  }

  void attend_memory(int64_t layer, const Segment& s, int64_t h, const float* qkv,
                     const PanelMine& mine) const {
    Attention a = queries_of(s, h, qkv, mine);
    a.count = cached_keys(*memory_, layer, s.sequence, h / (s_.heads / s_.key_heads), 0,
                          memory_->length(s.sequence), mine.spans);
    layer_panels_.attend(a);
  }

  const Stack& s_;
  KvCache* cache_;
  const KvCache* memory_;
  const Cut& cut_;
  const PanelBuffers b_;
  const Capabilities caps_;
  const int threads_;
  const LayerPanelKernels& layer_panels_;
};

}  // namespace se
