#include "blocks/encoder.h"

#include <omp.h>

#include <algorithm>
#include <initializer_list>

#include "ops/spmm.h"
#include "ops/workspace.h"

namespace se {
namespace {

// Panels of a pass for each thread: enough that weights read from memory serve several.
constexpr int64_t kPanelsPerThread = 8;
constexpr int64_t kPad = 64;  // floats that attention may read behind a panel

thread_local Workspace pass_memory, thread_memory;

// Queries of one sequence in one panel.
struct Segment {
  int64_t panel, lane, queries;
  int64_t position;         // of the first one in its sequence
  int64_t first, segments;  // all segments of the sequence
};

// How the tokens of a pass are cut into panels.
struct Cut {
  int64_t tokens, widest;
  std::vector<Segment> segments;
  std::vector<int64_t> begin;  // first segment of each panel, and the end

  Cut(const int64_t* lengths, int64_t sequences, int64_t widest_panel) : widest(widest_panel) {
    tokens = 0;
    for (int64_t s = 0; s < sequences; ++s) {
      const int64_t first = static_cast<int64_t>(segments.size());
      for (int64_t at = 0; at < lengths[s];) {
        const int64_t token = tokens + at, lane = token % widest;
        const int64_t n = std::min(lengths[s] - at, widest - lane);
        segments.push_back({token / widest, lane, n, at, first, 0});
        at += n;
      }
      const int64_t count = static_cast<int64_t>(segments.size()) - first;
      for (int64_t i = first; i < first + count; ++i) segments[i].segments = count;
      tokens += lengths[s];
    }
    for (int64_t p = 0, i = 0; p <= panels(); ++p) {
      while (i < static_cast<int64_t>(segments.size()) && segments[i].panel < p) ++i;
      begin.push_back(i);
    }
  }
  int64_t panels() const { return ceil_div(tokens, widest); }
  int64_t live(int64_t p) const { return std::min(tokens - p * widest, widest); }
  int64_t width(int64_t p) const { return panel_width(live(p), 16, widest); }
};

// The activations of a pass, [panels][features][width] each.
struct Buffers {
  float *x, *h, *mixed, *inner;
  float *quads, *scales;  // of a product with int8 weights; a slot a panel, or a thread if alone
  float* qkv[2];          // in turns: a thread may be a layer ahead of the one that still reads
};

// What a thread needs for itself.
struct Mine {
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

class Pass {
 public:
  Pass(const Encoder& encoder, const Cut& cut, const Buffers& buffers, Isa isa, int threads)
      : e_(encoder), cut_(cut), b_(buffers), isa_(isa), threads_(threads), lanes_(lanes(isa)) {}

  void layer(int64_t i, const Team& team, const Mine& mine) const {
    const EncoderLayer& l = e_.layers[i];
    float* qkv = b_.qkv[i % 2];
    if (!team.alone) {
      project(l, team, qkv, mine);
      return rest(l, team, qkv, b_.inner, mine);
    }
    for (int64_t p = team.first; p < team.last; ++p) project(l, team.only(p), qkv, mine);
#pragma omp barrier
    for (int64_t p = team.first; p < team.last; ++p) {
      float* inner = b_.inner + (omp_get_thread_num() - p) * cut_.widest * e_.inner;
      rest(l, team.only(p), qkv, inner, mine);
    }
  }

 private:
  int64_t query_rows() const { return e_.heads * e_.head; }
  bool int8(const BlockLinear& linear) const {
    const Runs* runs = linear.weight ? std::get_if<Runs>(linear.weight) : nullptr;
    return runs && runs->dtype == DType::i8;
  }
  int64_t key_rows() const { return e_.key_heads * e_.head; }
  int64_t qkv_rows() const { return query_rows() + 2 * key_rows(); }
  template <class T>
  T* panel(T* data, int64_t p, int64_t features) const {
    return data + p * cut_.widest * features;
  }

  // Up to queries, keys and values: all that other panels of a sequence need.
  void project(const EncoderLayer& l, const Team& team, float* qkv, const Mine& mine) const {
    const float* x = b_.x;
    if (e_.norm_first) {
      norm(l.norm1, team, b_.x, b_.h);
      x = b_.h;
    }
    quantize({l.query, l.key, l.value}, team, x, e_.hidden);
    const auto to = [&](int64_t row) {
      return Target{qkv, qkv_rows(), row, Activation::none, nullptr, false};
    };
    product(l.query, team, x, e_.hidden, to(0), mine, false);
    product(l.key, team, x, e_.hidden, to(query_rows()), mine, false);
    product(l.value, team, x, e_.hidden, to(query_rows() + key_rows()), mine, true);
  }

  // From attention to the end of the layer.
  void rest(const EncoderLayer& l, const Team& team, const float* qkv, float* inner,
            const Mine& mine) const {
    attention(team, qkv, mine);
    quantize({l.output}, team, b_.mixed, query_rows());
    float* sum = e_.norm_first ? b_.x : b_.h;
    product(l.output, team, b_.mixed, query_rows(),
            {sum, e_.hidden, 0, Activation::none, b_.x, false}, mine, true);
    norm(e_.norm_first ? l.norm2 : l.norm1, team, sum, b_.h);
    quantize({l.gate, l.up}, team, b_.h, e_.hidden);
    if (l.gate.weight)
      product(l.gate, team, b_.h, e_.hidden, {inner, e_.inner, 0, e_.activation, nullptr, false},
              mine, true);
    product(l.up, team, b_.h, e_.hidden,
            {inner, e_.inner, 0, l.gate.weight ? Activation::none : e_.activation,
             l.gate.weight ? inner : nullptr, true},
            mine, true);
    quantize({l.down}, team, inner, e_.inner);
    product(l.down, team, inner, e_.inner, {b_.x, e_.hidden, 0, Activation::none, sum, false}, mine,
            true);
    if (!e_.norm_first) norm(l.norm2, team, b_.x, b_.x);
  }

  int64_t slot(const Team& team, int64_t p) const { return team.alone ? omp_get_thread_num() : p; }
  int64_t quad_panel() const {
    return ceil_div(std::max({e_.hidden, query_rows(), e_.inner}), 4) * cut_.widest;
  }

  // The input of products of which some have int8 weights.
  void quantize(std::initializer_list<BlockLinear> linears, const Team& team, const float* x,
                int64_t features) const {
    if (std::none_of(linears.begin(), linears.end(), [&](const BlockLinear& l) { return int8(l); }))
      return;
    const int64_t parts = cut_.widest / 16;
    team.share(team.panels() * parts, true, [&](int64_t i) {
      const int64_t p = team.first + i / parts, lane = i % parts * 16, to = slot(team, p);
      if (lane < cut_.width(p))
        lanes_.quantize(panel(x, p, features) + lane, cut_.width(p), features, 16,
                        b_.quads + to * quad_panel() + lane, b_.scales + to * cut_.widest + lane);
    });
  }

  void product(const BlockLinear& linear, const Team& team, const float* x, int64_t in,
               const Target& to, const Mine& mine, bool wait) const {
    if (const Runs* runs = std::get_if<Runs>(linear.weight))
      multiply(RunsWork(*runs, isa_), int8(linear) ? runs->scales : nullptr, linear.bias, team, x,
               in, to, mine, wait);
    else
      multiply(StripsWork(std::get<Strips>(*linear.weight), isa_, threads_), nullptr, linear.bias,
               team, x, in, to, mine, wait);
  }

  // Panels outside: a panel stays in the cache while the weights, which are fewer bytes, pass by.
  template <class Work>
  void multiply(const Work& work, const float* scales, const float* bias, const Team& team,
                const float* x, int64_t in, const Target& to, const Mine& mine, bool wait) const {
    const int64_t chunks = work.chunks();
    team.share(team.panels() * chunks, wait, [&](int64_t i) {
      const int64_t p = team.first + i / chunks, c = i % chunks, width = cut_.width(p);
      const int64_t quads = slot(team, p);
      multiply_chunk(work, lanes_, c, scales ? b_.quads + quads * quad_panel() : panel(x, p, in),
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
        lanes_.norm(panel(x, p, e_.hidden) + lane, width, e_.hidden, 16, norm,
                    panel(y, p, e_.hidden) + lane);
    });
  }

  void attention(const Team& team, const float* qkv, const Mine& mine) const {
    const int64_t begin = cut_.begin[team.first], end = cut_.begin[team.last];
    team.share((end - begin) * e_.heads, true, [&](int64_t i) {
      attend(cut_.segments[begin + i / e_.heads], i % e_.heads, qkv, mine);
    });
  }

  void attend(const Segment& s, int64_t h, const float* qkv, const Mine& mine) const {
    const int64_t key = query_rows() + h / (e_.heads / e_.key_heads) * e_.head;
    const int64_t seen = e_.causal ? s.position + s.queries : s.position + (1 << 30);
    int64_t count = 0;
    for (int64_t i = s.first; i < s.first + s.segments; ++i) {
      const Segment& from = cut_.segments[i];
      if (from.position >= seen) break;
      const int64_t width = cut_.width(from.panel);
      const float* k = panel(qkv, from.panel, qkv_rows()) + key * width + from.lane;
      mine.spans[count++] = {k, k + key_rows() * width, width, width, 1, from.queries};
    }
    const int64_t width = cut_.width(s.panel);
    Attention a{};
    a.q = panel(qkv, s.panel, qkv_rows()) + h * e_.head * width + s.lane;
    a.y = panel(b_.mixed, s.panel, query_rows()) + h * e_.head * width + s.lane;
    a.stride = width;
    a.queries = s.queries;
    a.head = e_.head;
    a.scale = e_.scale;
    a.spans = mine.spans;
    a.count = count;
    a.causal = e_.causal;
    a.first_query = s.position;
    a.window = e_.window;
    if (e_.bias) a.bias = e_.bias + h * (2 * e_.reach - 1) + e_.reach - 1;
    a.scratch = mine.scratch;
    lanes_.attend(a);
  }

  const Encoder& e_;
  const Cut& cut_;
  const Buffers b_;
  const Isa isa_;
  const int threads_;
  const LaneKernels& lanes_;
};

// The widest panel that every weight takes, and the most sums that a chunk of one has.
struct Sizes {
  int64_t widest = 64, rows = 0;
  bool int8 = false;

  Sizes(const Encoder& e, Isa isa, int threads) {
    for (const EncoderLayer& l : e.layers)
      for (const BlockLinear* b :
           {&l.query, &l.key, &l.value, &l.output, &l.gate, &l.up, &l.down}) {
        if (!b->weight) continue;
        if (const Runs* runs = std::get_if<Runs>(b->weight))
          add(RunsWork(*runs, isa));
        else
          add(StripsWork(std::get<Strips>(*b->weight), isa, threads));
      }
  }
  template <class Work>
  void add(const Work& work) {
    widest = std::min(widest, work.max_tokens());
    rows = std::max(rows, work.sums());
    int8 = int8 || work.w.dtype == DType::i8;
  }
};

void encode_pass(const Encoder& e, const float* x, const int64_t* lengths, int64_t sequences,
                 float* y, const Sizes& sizes, Isa isa) {
  const Cut cut(lengths, sequences, sizes.widest);
  const int64_t panels = cut.panels();
  if (panels == 0) return;
  const int threads = omp_get_max_threads();
  // Alone where that leaves nobody idle for long: then a layer has one barrier, not seven.
  const bool alone = panels % threads == 0 || panels >= 4 * threads;
  const int64_t qkv_rows = (e.heads + 2 * e.key_heads) * e.head;
  const auto size = [&](int64_t features, int64_t count) {
    return count * cut.widest * features + kPad;
  };
  const int64_t slots = alone ? threads : panels;
  const int64_t hidden = size(e.hidden, panels), mixed = size(e.heads * e.head, panels);
  const int64_t qkv = size(qkv_rows, panels), inner = size(e.inner, slots);
  const int64_t quads =
      sizes.int8 ? size(ceil_div(std::max({e.hidden, e.heads * e.head, e.inner}), 4), slots) : 0;
  float* memory =
      pass_memory.get<float>(2 * hidden + mixed + 2 * qkv + inner + quads + slots * cut.widest);
  Buffers b;
  b.x = memory;
  b.h = b.x + hidden;
  b.mixed = b.h + hidden;
  b.qkv[0] = b.mixed + mixed;
  b.qkv[1] = b.qkv[0] + qkv;
  b.inner = b.qkv[1] + qkv;
  b.quads = b.inner + inner;
  b.scales = b.quads + quads;
  // Lanes past the last token belong to nobody, but what is read must be written once.
  std::fill(b.mixed + (panels - 1) * cut.widest * e.heads * e.head, b.mixed + mixed, 0.0f);
  int64_t spans = 0;
  for (const Segment& s : cut.segments) spans = std::max(spans, s.segments);
  const int64_t sums = sizes.rows * cut.widest, scratch = attention_scratch(e.head);
  const int64_t span_floats =
      ceil_div(spans * static_cast<int64_t>(sizeof(KeySpan)), 64) * 16;  // of whole lines
  float* own = thread_memory.get<float>(threads * (sums + scratch + span_floats));
  const Pass pass(e, cut, b, isa, threads);
  const PanelKernels& convert = se::panels(isa);
#pragma omp parallel num_threads(threads)
  {
    const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    float* floats = own + me * (sums + scratch + span_floats);
    const Mine mine{floats, floats + sums, reinterpret_cast<KeySpan*>(floats + sums + scratch)};
    // A team of fewer threads than asked for still takes every panel.
    const Team team =
        alone ? Team{true, panels * me / all, panels * (me + 1) / all} : Team{false, 0, panels};
    const auto in = [&](int64_t p) {
      convert.pack(x + p * cut.widest * e.hidden, DType::f32, e.hidden, cut.live(p), e.hidden,
                   cut.width(p), b.x + p * cut.widest * e.hidden, DType::f32);
    };
    const auto out = [&](int64_t p) {
      Epilogue row_major{};
      row_major.y = y + p * cut.widest * e.hidden;
      row_major.y_stride = e.hidden;
      row_major.dtype = DType::f32;
      convert.store({b.x + p * cut.widest * e.hidden, cut.width(p), nullptr}, cut.live(p), 0,
                    e.hidden, row_major);
    };
    team.share(team.panels(), true, [&](int64_t i) { in(team.first + i); });
    for (int64_t l = 0; l < static_cast<int64_t>(e.layers.size()); ++l) pass.layer(l, team, mine);
    team.share(team.panels(), true, [&](int64_t i) { out(team.first + i); });
  }
}

}  // namespace

void encode(const Encoder& e, const float* x, const std::vector<int64_t>& lengths, float* y,
            Isa isa) {
  // Panels are floats: bf16 panels, for products that few processors are good at, have no kernels
  // beside the product.
  isa = std::min(isa, Isa::avx512_vbmi2);
  const Sizes sizes(e, isa, omp_get_max_threads());
  const int64_t most = kPanelsPerThread * omp_get_max_threads() * sizes.widest;
  const int64_t sequences = static_cast<int64_t>(lengths.size());
  for (int64_t s = 0; s < sequences;) {
    int64_t tokens = 0, end = s;
    do tokens += lengths[end++];
    while (end < sequences && tokens + lengths[end] <= most);
    encode_pass(e, x, lengths.data() + s, end - s, y, sizes, isa);
    x += tokens * e.hidden;
    y += tokens * e.hidden;
    s = end;
  }
}

}  // namespace se
