// Steps of many tokens: activations stay in panels from the first layer to the last. A batch is
// computed in passes of as many tokens as fit the caches well; panel_pass.h computes a pass.
#include <omp.h>

#include <algorithm>

#include "layers/panel_pass.h"
#include "layers/stack.h"
#include "ops/workspace.h"

namespace se {
namespace {

// Panels of a pass for each thread: enough that weights read from memory serve several.
constexpr int64_t kPanelsPerThread = 8;
constexpr int64_t kPad = 64;  // floats that attention may read behind a panel

thread_local Workspace pass_memory, thread_memory;

// The widest panel that every weight multiplies, the most sums of a chunk of rows, the longest band
// of tiles in bytes, and which kinds of weights there are.
struct PanelNeeds {
  int64_t widest = 64, sums = 0, band = 0;
  PanelInputs inputs;

  PanelNeeds(const Stack& stack, Capabilities caps, int threads) {
    for (const Layer& layer : stack.layers)
      for (const LayerLinear* linear : layer.linears())
        if (*linear) add(*linear->panels, caps, threads);
  }
  void add(const PackedWeight& weight, Capabilities caps, int threads) {
    inputs.add(weight, caps);
    const Tiles* w = std::get_if<Tiles>(&weight);
    if (!w) return with_layer_work(weight, caps, threads, [&](const auto& work) { add(work); });
    sums = std::max(sums, Tiles::kBand);
    band = std::max(band, 2 * w->columns_of_tiles() * spmm_tiles(w->dtype, caps).scratch);
  }
  template <class Work>
  void add(const Work& work) {
    widest = std::min(widest, work.max_tokens());
    sums = std::max(sums, work.sums());
  }
};

PanelBuffers take_buffers(const Stack& stack, const PanelNeeds& needs, const PanelLayout& layout,
                          bool one_thread, int threads, Arena& arena) {
  const LargestLayer largest(stack);
  const int64_t panels = layout.panels();
  const auto take = [&](int64_t features, bool per_thread) {
    const int64_t stride = layout.widest * features, count = per_thread ? threads : panels;
    return PanelBuffer{arena.take(count * stride + kPad), stride, per_thread};
  };
  PanelBuffers b;
  b.x = take(stack.hidden, false);
  b.h = take(stack.hidden, false);
  b.mixed = take(largest.query_rows, false);
  for (PanelBuffer& qkv : b.qkv) qkv = take(largest.qkv_rows, false);
  b.inner = take(largest.up_rows, one_thread);
  const int64_t features = std::max({stack.hidden, largest.query_rows, largest.inner});
  const PanelInputs& inputs = needs.inputs;
  if (inputs.bf16) b.bf16 = take(ceil_div(features, 2), one_thread);
  if (inputs.halves) b.halves = take(ceil_div(features, 2) + 1, one_thread);
  if (inputs.bytes) b.bytes = take(ceil_div(features, 4), one_thread);
  if (inputs.tiles) b.tiles = take(ceil_div(features, 32) * 16, one_thread);
  if (inputs.byte_tiles) b.byte_tiles = take(ceil_div(features, 64) * 16, one_thread);
  if (inputs.quads) b.quads = take(ceil_div(features, 4), one_thread);
  if (inputs.quads || inputs.bytes) b.scales = take(1, one_thread);
  for (const RotaryTable& table : stack.rotary_tables)
    b.angles.push_back({take(table.half, false), take(table.half, false)});
  return b;
}

// The most spans of keys that a query of the pass reads.
int64_t most_key_spans(const Batch& batch, const PanelLayout& layout) {
  constexpr int64_t kPage = KvCache::kPagePositions;
  int64_t spans = 0;
  for (const Segment& s : layout.segments) {
    spans = std::max(spans, batch.cache ? ceil_div(s.position + s.queries, kPage) : s.segments);
    if (batch.memory) spans = std::max(spans, ceil_div(batch.memory->length(s.sequence), kPage));
  }
  return spans;
}

PanelThreadBuffers take_thread_buffers(const Stack& stack, const PanelNeeds& needs,
                                       const PanelLayout& layout, int64_t spans, Arena& arena) {
  PanelThreadBuffers b;
  b.sums = arena.take(needs.sums * layout.widest);
  b.scratch = arena.take(attention_scratch(LargestLayer(stack).head_size));
  b.band = arena.take(needs.band / 4);
  b.band_sums = arena.take(needs.band ? 32 * Tiles::kBand : 0);
  b.spans = reinterpret_cast<KeySpan*>(
      arena.take(ceil_div(spans * int64_t{sizeof(KeySpan)}, int64_t{sizeof(float)})));
  return b;
}

// Rows `positions` of a rotary table, transposed to [half][width]. Lanes past the last token are
// zero.
void gather_angles(const float* table, int64_t half, const int64_t* positions, int64_t tokens,
                   int64_t width, float* panel) {
  for (int64_t t = 0; t < width; ++t)
    for (int64_t i = 0; i < half; ++i)
      panel[i * width + t] = t < tokens ? table[positions[t] * half + i] : 0.0f;
}

// What a pass computes: new states, or the keys and values of a memory.
enum class Pass { layers, memory };

class PassRunner {
 public:
  PassRunner(const Stack& stack, const Batch& batch, Pass pass, Capabilities caps)
      : stack_(stack),
        batch_(batch),
        pass_(pass),
        caps_(caps),
        needs_(stack, caps, omp_get_max_threads()),
        io_(panel_io(caps)),
        kernels_(layer_panels(caps)) {}

  // Splits the batch into passes. A sequence can be split where a cache holds its earlier tokens.
  void run_all() {
    const int64_t most = kPanelsPerThread * omp_get_max_threads() * needs_.widest;
    std::vector<SequenceSpan> spans;
    int64_t token0 = 0, tokens = 0;
    const auto flush = [&] {
      run_pass(PanelLayout(spans, needs_.widest), token0);
      for (const SequenceSpan& span : spans)
        if (batch_.cache) batch_.cache->add(span.sequence, span.tokens);
      token0 += tokens;
      tokens = 0;
      spans.clear();
    };
    for (size_t i = 0; i < batch_.lengths.size(); ++i) {
      for (int64_t left = batch_.lengths[i]; left > 0;) {
        const int64_t n = batch_.cache ? std::min(left, most) : left;
        if (tokens && tokens + n > most) flush();
        const int64_t sequence = static_cast<int64_t>(i);
        spans.push_back({sequence, batch_.cache ? batch_.cache->length(sequence) : 0, n});
        tokens += n;
        left -= n;
      }
    }
    flush();
  }

 private:
  // The first token of the pass is `token0` of the batch.
  void run_pass(const PanelLayout& layout, int64_t token0) const {
    const int64_t panels = layout.panels();
    if (panels == 0) return;
    const int threads = omp_get_max_threads();
    // One thread computes each panel where all threads get about as many: then a layer has one
    // barrier, not seven.
    const bool one_thread = panels % threads == 0 || panels >= 4 * threads;
    Arena measured{nullptr};
    take_buffers(stack_, needs_, layout, one_thread, threads, measured);
    Arena shared{pass_memory.get<float>(measured.used)};
    const PanelBuffers b = take_buffers(stack_, needs_, layout, one_thread, threads, shared);
    // Lanes past the last token are never computed, but they are read.
    std::fill_n(b.mixed.panel(panels - 1), b.mixed.stride + kPad, 0.0f);
    const int64_t spans = most_key_spans(batch_, layout);
    Arena one{nullptr};
    take_thread_buffers(stack_, needs_, layout, spans, one);
    float* own_memory = thread_memory.get<float>(threads * one.used);
    const PanelPass pass(stack_, batch_.cache, batch_.memory, layout, b, caps_, threads);
#pragma omp parallel num_threads(threads)
    {
      const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
      Arena arena{own_memory + me * one.used};
      const PanelThreadBuffers own = take_thread_buffers(stack_, needs_, layout, spans, arena);
      // OpenMP may start fewer threads than asked for: they share all panels.
      const PanelRange range = one_thread
                                   ? PanelRange{true, panels * me / all, panels * (me + 1) / all}
                                   : PanelRange{false, 0, panels};
      if (needs_.band) spmm_tiles(DType::bf16, caps_).enter();
      range.for_items(range.panels(), true,
                      [&](int64_t i) { load(layout, token0, range.first + i, b); });
      for (int64_t l = 0; l < static_cast<int64_t>(stack_.layers.size()); ++l)
        pass_ == Pass::memory ? pass.encode_memory(l, range, own) : pass.run_layer(l, range, own);
      if (pass_ == Pass::layers)
        range.for_items(range.panels(), true,
                        [&](int64_t i) { store(layout, token0, range.first + i, b); });
      if (needs_.band) spmm_tiles(DType::bf16, caps_).leave();
    }
  }

  // Panel p of the batch's x and of the angles of its positions.
  void load(const PanelLayout& layout, int64_t token0, int64_t p, const PanelBuffers& b) const {
    const int64_t token = token0 + p * layout.widest, tokens = layout.tokens_of(p);
    const int64_t width = layout.width(p);
    io_.pack(batch_.x + token * stack_.hidden, DType::f32, stack_.hidden, tokens, stack_.hidden,
             width, b.x.panel(p), Panel::floats);
    if (pass_ == Pass::memory) return;
    for (size_t i = 0; i < stack_.rotary_tables.size(); ++i) {
      const RotaryTable& table = stack_.rotary_tables[i];
      const int64_t* positions = batch_.positions + token;
      gather_angles(table.cosines, table.half, positions, tokens, width,
                    b.angles[i].cosines.panel(p));
      gather_angles(table.sines, table.half, positions, tokens, width, b.angles[i].sines.panel(p));
    }
  }

  // Panel p of the result, after the final norm, to the batch's y.
  void store(const PanelLayout& layout, int64_t token0, int64_t p, const PanelBuffers& b) const {
    float* panel = b.x.panel(p);
    const int64_t width = layout.width(p);
    if (stack_.final_norm)
      kernels_.norm(panel, width, stack_.hidden, width, *stack_.final_norm, panel);
    Epilogue row_major{};
    row_major.y = batch_.y + (token0 + p * layout.widest) * stack_.hidden;
    row_major.y_stride = stack_.hidden;
    row_major.dtype = DType::f32;
    io_.store({panel, width, nullptr}, layout.tokens_of(p), 0, stack_.hidden, row_major);
  }

  const Stack& stack_;
  const Batch& batch_;
  const Pass pass_;
  const Capabilities caps_;
  const PanelNeeds needs_;
  const PanelIoKernels& io_;
  const LayerPanelKernels& kernels_;
};

}  // namespace

void run_on_panels(const Stack& stack, const Batch& batch, Capabilities caps) {
  PassRunner(stack, batch, Pass::layers, caps).run_all();
}

void encode_memory(const Stack& stack, const float* x, const std::vector<int64_t>& lengths,
                   KvCache& memory, Capabilities caps) {
  const Batch batch{x, nullptr, lengths, nullptr, &memory, nullptr};
  PassRunner(stack, batch, Pass::memory, caps).run_all();
}

}  // namespace se
