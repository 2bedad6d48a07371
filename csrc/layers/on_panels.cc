// Many tokens: activations stay in panels from the first layer to the last. A pass is as many
// tokens as are worth keeping at once; panel_pass.h takes it through a layer.
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

// The widest panel that every weight takes, and the most sums that a chunk of one has.
struct Sizes {
  int64_t widest = 64, rows = 0;
  bool int8 = false;

  Sizes(const Stack& stack, Capabilities caps, int threads) {
    for (const Layer& l : stack.layers)
      for (const LayerLinear* b : l.linears()) {
        if (!*b) continue;
        with_panel_work(*b->panels, caps, threads, [&](const auto& work) { add(work); });
      }
  }
  template <class Work>
  void add(const Work& work) {
    widest = std::min(widest, work.max_tokens());
    rows = std::max(rows, work.sums());
    int8 = int8 || work.w.dtype == DType::i8;
  }
};

// The rotary tables' rows for the tokens of a panel, side by side.
void gather(const float* table, int64_t half, const int64_t* positions, int64_t live, int64_t width,
            float* panel) {
  for (int64_t t = 0; t < width; ++t)
    for (int64_t i = 0; i < half; ++i)
      panel[i * width + t] = t < live ? table[positions[t] * half + i] : 0.0f;
}

// `pieces` begin at `token0` of the batch.
void run_pass(const Stack& s, const Batch& batch, const std::vector<Piece>& pieces, int64_t token0,
              const Sizes& sizes, bool memorize, Capabilities caps) {
  const Cut cut(pieces, sizes.widest);
  const int64_t panels = cut.panels(), half = s.rotary.half;
  if (panels == 0) return;
  const int threads = omp_get_max_threads();
  // Alone where that leaves nobody idle for long: then a layer has one barrier, not seven.
  const bool alone = panels % threads == 0 || panels >= 4 * threads;
  const auto size = [&](int64_t features, int64_t count) {
    return count * cut.widest * features + kPad;
  };
  const int64_t slots = alone ? threads : panels;
  const int64_t hidden = size(s.hidden, panels), mixed = size(s.query_rows(), panels);
  const int64_t qkv = size(s.qkv_rows(), panels), inner = size(s.inner, slots);
  const int64_t quads =
      sizes.int8 ? size(ceil_div(std::max({s.hidden, s.query_rows(), s.inner}), 4), slots) : 0;
  const int64_t angles = size(half, panels);
  float* memory = pass_memory.get<float>(2 * hidden + mixed + 2 * qkv + inner + quads + 2 * angles +
                                         slots * cut.widest);
  PanelBuffers b;
  b.x = memory;
  b.h = b.x + hidden;
  b.mixed = b.h + hidden;
  b.qkv[0] = b.mixed + mixed;
  b.qkv[1] = b.qkv[0] + qkv;
  b.inner = b.qkv[1] + qkv;
  b.quads = b.inner + inner;
  b.cosines = b.quads + quads;
  b.sines = b.cosines + angles;
  b.scales = b.sines + angles;
  // Lanes past the last token belong to nobody, but what is read must be written once.
  std::fill(b.mixed + (panels - 1) * cut.widest * s.query_rows(), b.mixed + mixed, 0.0f);
  int64_t spans = 0;
  for (const Segment& segment : cut.segments) {
    const int64_t blocks = ceil_div(segment.position + segment.queries, KvCache::kBlock);
    spans = std::max(spans, batch.cache ? blocks : segment.segments);
    if (batch.memory)
      spans = std::max(spans, ceil_div(batch.memory->length(segment.sequence), KvCache::kBlock));
  }
  const int64_t sums = sizes.rows * cut.widest, scratch = attention_scratch(s.head);
  const int64_t span_floats =
      ceil_div(spans * static_cast<int64_t>(sizeof(KeySpan)), 64) * 16;  // of whole lines
  float* own = thread_memory.get<float>(threads * (sums + scratch + span_floats));
  const PanelPass pass(s, batch.cache, batch.memory, cut, b, caps, threads);
  const PanelIoKernels& convert = se::panel_io(caps);
  const LayerPanelKernels& lane = layer_panels(caps);
#pragma omp parallel num_threads(threads)
  {
    const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    float* floats = own + me * (sums + scratch + span_floats);
    const PanelMine mine{floats, floats + sums,
                         reinterpret_cast<KeySpan*>(floats + sums + scratch)};
    // A team of fewer threads than asked for still takes every panel.
    const Team team =
        alone ? Team{true, panels * me / all, panels * (me + 1) / all} : Team{false, 0, panels};
    const auto in = [&](int64_t p) {
      const int64_t at = p * cut.widest, live = cut.live(p), width = cut.width(p);
      convert.pack(batch.x + (token0 + at) * s.hidden, DType::f32, s.hidden, live, s.hidden, width,
                   b.x + at * s.hidden, DType::f32);
      if (!half || memorize) return;
      const int64_t* positions = batch.positions + token0 + at;
      gather(s.rotary.cosines, half, positions, live, width, b.cosines + at * half);
      gather(s.rotary.sines, half, positions, live, width, b.sines + at * half);
    };
    const auto out = [&](int64_t p) {
      float* panel = b.x + p * cut.widest * s.hidden;
      const int64_t width = cut.width(p);
      if (s.last) lane.norm(panel, width, s.hidden, width, *s.last, panel);
      Epilogue row_major{};
      row_major.y = batch.y + (token0 + p * cut.widest) * s.hidden;
      row_major.y_stride = s.hidden;
      row_major.dtype = DType::f32;
      convert.store({panel, width, nullptr}, cut.live(p), 0, s.hidden, row_major);
    };
    team.share(team.panels(), true, [&](int64_t i) { in(team.first + i); });
    for (int64_t l = 0; l < static_cast<int64_t>(s.layers.size()); ++l)
      memorize ? pass.memorize(l, team, mine) : pass.layer(l, team, mine);
    if (!memorize) team.share(team.panels(), true, [&](int64_t i) { out(team.first + i); });
  }
}

void run_passes(const Stack& stack, const Batch& batch, bool memorize, Capabilities caps) {
  const Sizes sizes(stack, caps, omp_get_max_threads());
  const int64_t most = kPanelsPerThread * omp_get_max_threads() * sizes.widest;
  std::vector<Piece> pieces;
  int64_t token0 = 0, tokens = 0;
  const auto flush = [&] {
    run_pass(stack, batch, pieces, token0, sizes, memorize, caps);
    for (const Piece& piece : pieces)
      if (batch.cache) batch.cache->add(piece.sequence, piece.tokens);
    token0 += tokens;
    tokens = 0;
    pieces.clear();
  };
  for (size_t i = 0; i < batch.lengths.size(); ++i) {
    for (int64_t left = batch.lengths[i]; left > 0;) {
      // A sequence can be cut where the cache holds what came before.
      const int64_t n = batch.cache ? std::min(left, most) : left;
      if (tokens && tokens + n > most) flush();
      const int64_t sequence = static_cast<int64_t>(i);
      pieces.push_back({sequence, batch.cache ? batch.cache->length(sequence) : 0, n});
      tokens += n;
      left -= n;
    }
  }
  flush();
}

}  // namespace

void run_on_panels(const Stack& stack, const Batch& batch, Capabilities caps) {
  run_passes(stack, batch, false, caps);
}

void remember(const Stack& stack, const float* x, const std::vector<int64_t>& lengths,
              KvCache& memory, Capabilities caps) {
  run_passes(stack, {x, nullptr, lengths, nullptr, &memory, nullptr}, true, caps);
}

}  // namespace se
