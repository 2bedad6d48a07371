#include "layers/stack.h"

#include <numeric>

#include "bindings/kv_cache.h"
#include "bindings/layer.h"

namespace se {
namespace {

using Integers = py::array_t<int64_t, py::array::c_style>;

constexpr int64_t kMostTokens = 1 << 24;  // of one sequence

// Locks both caches, either of which may be null, without the GIL.
class CacheLocks {
 public:
  CacheLocks(BoundCache* cache, BoundCache* memory) {
    require(cache == nullptr || cache != memory, "stack: cache and memory must not be the same");
    py::gil_scoped_release release;
    if (cache) cache_ = {cache->mutex, std::defer_lock};
    if (memory) memory_ = {memory->mutex, std::defer_lock};
    if (cache && memory)
      std::lock(cache_, memory_);
    else if (cache)
      cache_.lock();
    else if (memory)
      memory_.lock();
  }

 private:
  std::unique_lock<std::mutex> cache_, memory_;
};

// A stack and everything that its pointers point to.
class BoundStack {
 public:
  BoundStack(int64_t hidden, std::vector<Shared<BoundLayer>> layers, Shared<BoundNorm> final_norm)
      : layers_(std::move(layers)), final_norm_(std::move(final_norm)) {
    require(hidden > 0, "stack: hidden must be 1 or more");
    stack_.hidden = hidden;
    for (const Shared<BoundLayer>& layer : layers_) add(layer);
    require(!final_norm_ || final_norm_->fits(hidden), "stack: the final norm has the wrong size");
    stack_.final_norm = final_norm_ ? final_norm_->view() : nullptr;
    require(supports_panels(stack_) || supports_rows(stack_),
            "stack: weights must all be packed for panels, or all for rows");
  }

  // (key_heads, head_size) of each layer's keys and values.
  std::vector<std::pair<int64_t, int64_t>> kv_heads() const { return kv_heads_of(false); }
  std::vector<std::pair<int64_t, int64_t>> memory_heads() const { return kv_heads_of(true); }

  void run(const Floats& x, const std::vector<int64_t>& lengths, Floats y, BoundCache* cache,
           const std::optional<Integers>& positions, BoundCache* memory,
           const std::optional<std::string>& isa) const {
    const CacheLocks held(cache, memory);
    KvCache* kv = cache ? &cache->cache : nullptr;
    const KvCache* from = memory ? &memory->cache : nullptr;
    if (kv) {
      require(causal_, "stack: only causal layers keep a cache");
      require_fits(*kv, false, lengths.size());
    }
    require(stack_.has_cross_attention() == (from != nullptr),
            "stack: a memory is given to cross attention, and to nothing else");
    if (from) {
      require_fits(*from, true, lengths.size());
      for (int64_t i = 0; i < from->sequences(); ++i)
        require(from->length(i) > 0, "stack: a sequence of the memory is empty");
    }
    int64_t tokens = 0;
    for (size_t i = 0; i < lengths.size(); ++i) {
      const int64_t n = lengths[i], before = kv ? kv->length(static_cast<int64_t>(i)) : 0;
      require(n >= 0 && n <= kMostTokens, "stack: lengths must not be negative");
      require(reach_ == 0 || before + n <= reach_,
              "stack: a sequence is longer than the position bias");
      tokens += n;
    }
    require_states(x, tokens);
    require_states(y, tokens);
    if (!stack_.rotary_tables.empty()) {
      require(positions && positions->size() == tokens,
              "stack: rotary positions must be one for each token");
      for (int64_t t = 0; t < tokens; ++t)
        require(positions->data()[t] >= 0 && positions->data()[t] < positions_,
                "stack: a position is outside the rotary tables");
    }
    require(step_layout(stack_, tokens, kv != nullptr).has_value(),
            "stack: a step of so many tokens needs weights that multiply panels");
    const Capabilities caps = capabilities_or_active(isa);
    const Batch batch{
        x.data(), y.mutable_data(), lengths, positions ? positions->data() : nullptr, kv, from};
    py::gil_scoped_release release;
    if (kv)
      for (size_t i = 0; i < lengths.size(); ++i) kv->reserve(static_cast<int64_t>(i), lengths[i]);
    se::run(stack_, batch, caps);
  }

  void encode_memory(const Floats& x, const std::vector<int64_t>& lengths, BoundCache& memory,
                     const std::optional<std::string>& isa) const {
    const auto held = memory.lock();
    require(stack_.has_cross_attention(), "stack: there is no cross attention that reads a memory");
    require(supports_panels(stack_), "stack: a memory needs weights that multiply panels");
    require_fits(memory.cache, true, lengths.size());
    int64_t tokens = 0;
    for (size_t i = 0; i < lengths.size(); ++i) {
      require(lengths[i] > 0 && lengths[i] <= kMostTokens, "stack: lengths must be 1 or more");
      require(memory.cache.length(static_cast<int64_t>(i)) == 0, "stack: the memory is not empty");
      tokens += lengths[i];
    }
    require_states(x, tokens);
    const Capabilities caps = capabilities_or_active(isa);
    const float* from = x.data();
    py::gil_scoped_release release;
    for (size_t i = 0; i < lengths.size(); ++i)
      memory.cache.reserve(static_cast<int64_t>(i), lengths[i]);
    se::encode_memory(stack_, from, lengths, memory.cache, caps);
  }

 private:
  void add(const Shared<BoundLayer>& layer) {
    require(layer && layer->hidden() == stack_.hidden, "stack: a layer has another hidden size");
    Layer view = layer->view();
    require(stack_.layers.empty() || stack_.has_cross_attention() == bool(view.cross_attention),
            "stack: all layers have cross attention, or none");
    if (const Shared<BoundRotary>& rotary = layer->attention->rotary)
      view.attention.rotary = table_index(rotary->view());
    causal_ = causal_ && view.attention.causal;
    if (const PositionBias* bias = view.attention.position_bias)
      reach_ = reach_ == 0 ? bias->reach : std::min(reach_, bias->reach);
    stack_.layers.push_back(view);
  }

  // The index of a table, which layers may share.
  int64_t table_index(const RotaryTable& table) {
    std::vector<RotaryTable>& all = stack_.rotary_tables;
    for (size_t i = 0; i < all.size(); ++i)
      if (all[i].cosines == table.cosines && all[i].sines == table.sines)
        return static_cast<int64_t>(i);
    positions_ = all.empty() ? table.positions : std::min(positions_, table.positions);
    all.push_back(table);
    return static_cast<int64_t>(all.size()) - 1;
  }

  std::vector<std::pair<int64_t, int64_t>> kv_heads_of(bool cross) const {
    std::vector<std::pair<int64_t, int64_t>> heads;
    for (const Layer& layer : stack_.layers) {
      const AttentionSublayer& a = cross ? layer.cross_attention : layer.attention;
      if (a) heads.emplace_back(a.key_heads, a.head_size);
    }
    return heads;
  }

  void require_states(const Floats& a, int64_t tokens) const {
    require(a.ndim() == 2 && a.shape(0) == tokens && a.shape(1) == stack_.hidden,
            "stack: states must be [sum of lengths, hidden]");
  }

  void require_fits(const KvCache& cache, bool cross, size_t sequences) const {
    bool fits = cache.layers() == static_cast<int64_t>(stack_.layers.size()) &&
                cache.sequences() == static_cast<int64_t>(sequences);
    for (int64_t l = 0; fits && l < cache.layers(); ++l) {
      const Layer& layer = stack_.layers[l];
      const AttentionSublayer& a = cross ? layer.cross_attention : layer.attention;
      fits = cache.heads(l) == KvHeads{a.key_heads, a.head_size};
    }
    require(fits, "stack: the cache is another model's, or has another number of sequences");
  }

  const std::vector<Shared<BoundLayer>> layers_;
  const Shared<BoundNorm> final_norm_;
  Stack stack_{};
  bool causal_ = true;
  int64_t reach_ = 0;      // of the shortest position bias; 0 for none
  int64_t positions_ = 0;  // of the shortest rotary table
};

}  // namespace

void bind_stack(py::module_& m) {
  bind_kv_cache(m);
  bind_layer(m);
  py::class_<BoundStack>(m, "Stack", "Layers of csrc/layers/stack.h.")
      .def(py::init<int64_t, std::vector<Shared<BoundLayer>>, Shared<BoundNorm>>(),
           py::arg("hidden"), py::arg("layers"), py::arg("final_norm") = py::none())
      .def_property_readonly("kv_heads", &BoundStack::kv_heads,
                             "(key_heads, head_size) of each layer, for a KvCache.")
      .def_property_readonly("memory_heads", &BoundStack::memory_heads,
                             "(key_heads, head_size) of each cross attention, for a memory.")
      .def("run", &BoundStack::run, py::arg("x").noconvert(), py::arg("lengths"),
           py::arg("y").noconvert(), py::arg("cache") = py::none(),
           py::arg("positions") = py::none(), py::arg("memory") = py::none(),
           py::arg("isa") = py::none(),
           "Sequences one after another, [sum of lengths, hidden] float32 in and out.")
      .def("encode_memory", &BoundStack::encode_memory, py::arg("x").noconvert(),
           py::arg("lengths"), py::arg("memory"), py::arg("isa") = py::none(),
           "Fill an empty cache with the keys and values of cross attention to states x.");
}

}  // namespace se
