#include "layers/stack.h"

#include <deque>
#include <memory>
#include <mutex>
#include <numeric>

#include "bindings/weight.h"

namespace se {
namespace {

using Floats = py::array_t<float, py::array::c_style>;

// Reads the fields of a dict by name; every field must be read.
class Fields {
 public:
  explicit Fields(const py::dict& dict) : dict_(dict) {}
  template <class T>
  T get(const char* name) {
    ++read_;
    if (!dict_.contains(name)) throw std::invalid_argument(std::string(name) + " is missing");
    return dict_[name].cast<T>();
  }
  void end() const { require(read_ == dict_.size(), "fields that no stack knows"); }

 private:
  const py::dict& dict_;
  size_t read_ = 0;
};

using Integers = py::array_t<int64_t, py::array::c_style>;

// A cache, and a lock: two calls must not write to it at once.
struct BoundCache {
  KvCache cache;
  mutable std::mutex mutex;

  explicit BoundCache(const KvCache& from) : cache(from) {}

  BoundCache(int64_t layers, int64_t key_heads, int64_t head, int64_t sequences,
             const std::string& dtype)
      : cache(checked(layers), checked(key_heads), checked(head), checked(sequences),
              checked(parse_dtype(dtype))) {}
  static DType checked(DType dtype) {
    require(dtype != DType::i8, "cache: dtype must be float32 or bfloat16");
    return dtype;
  }
  static int64_t checked(int64_t size) {
    require(size > 0 && size <= (1 << 20), "cache: sizes must be 1 or more");
    return size;
  }

  // Waiting must not hold the GIL: whoever holds the lock may need it to end.
  std::unique_lock<std::mutex> lock() const {
    py::gil_scoped_release release;
    return std::unique_lock<std::mutex>(mutex);
  }
  std::unique_ptr<BoundCache> copy() const {
    const auto held = lock();
    auto twin = std::make_unique<BoundCache>(cache);
    std::vector<int64_t> all(cache.sequences());
    std::iota(all.begin(), all.end(), int64_t{0});
    twin->cache.select(all);  // leaves reserved blocks behind
    return twin;
  }
  int64_t bytes() const {
    const auto held = lock();
    return cache.bytes();
  }
  const char* dtype() const { return dtype_name(cache.dtype()); }
  std::vector<int64_t> lengths() const {
    const auto held = lock();
    std::vector<int64_t> all;
    for (int64_t i = 0; i < cache.sequences(); ++i) all.push_back(cache.length(i));
    return all;
  }
  void crop(const std::vector<int64_t>& lengths) {
    const auto held = lock();
    require(static_cast<int64_t>(lengths.size()) == cache.sequences(),
            "cache: a length a sequence");
    for (int64_t i = 0; i < cache.sequences(); ++i)
      require(lengths[i] >= 0 && lengths[i] <= cache.length(i), "cache: crop only shortens");
    for (int64_t i = 0; i < cache.sequences(); ++i) cache.crop(i, lengths[i]);
  }
  void select(const std::vector<int64_t>& from) {
    const auto held = lock();
    require(!from.empty() && from.size() <= (1 << 20), "cache: select at least one sequence");
    for (const int64_t i : from)
      require(i >= 0 && i < cache.sequences(), "cache: there is no such sequence");
    cache.select(from);
  }
};

// A stack and everything that its pointers point into.
class BoundStack {
 public:
  BoundStack(const py::dict& config, const std::vector<py::dict>& layers) {
    Fields f(config);
    s_.hidden = f.get<int64_t>("hidden");
    s_.heads = f.get<int64_t>("heads");
    s_.key_heads = f.get<int64_t>("key_heads");
    s_.head = f.get<int64_t>("head");
    s_.inner = f.get<int64_t>("inner");
    s_.activation = static_cast<Activation>(f.get<int>("activation"));
    s_.norm_first = f.get<bool>("norm_first");
    s_.causal = f.get<bool>("causal");
    s_.window = f.get<int64_t>("window");
    s_.scale = f.get<float>("scale");
    const auto bias = f.get<std::optional<Floats>>("bias");
    const auto rotary = f.get<std::optional<std::pair<Floats, Floats>>>("rotary");
    for (const int64_t size : {s_.hidden, s_.heads, s_.key_heads, s_.head, s_.inner})
      require(size > 0 && size <= (1 << 20), "stack: sizes must be 1 or more");
    require(s_.heads % s_.key_heads == 0, "stack: heads must be a multiple of key_heads");
    require(static_cast<int>(s_.activation) >= 0 && static_cast<int>(s_.activation) <= 4,
            "unknown activation");
    require(s_.window >= 0, "stack: window must not be negative");
    s_.last = norm(f.get<py::object>("last"), s_.hidden);
    f.end();
    if (bias) {
      require(bias->ndim() == 2 && bias->shape(0) == s_.heads && bias->shape(1) % 2 == 1,
              "stack: bias must be [heads, 2 reach - 1]");
      s_.reach = (bias->shape(1) + 1) / 2;
      s_.bias = keep(*bias);
    }
    if (rotary) {
      const auto& [cosines, sines] = *rotary;
      require(cosines.ndim() == 2 && sines.ndim() == 2 && cosines.shape(0) == sines.shape(0) &&
                  cosines.shape(1) == sines.shape(1) && 2 * cosines.shape(1) <= s_.head,
              "stack: rotary must be two tables [positions, at most head / 2]");
      s_.rotary = {keep(cosines), keep(sines), cosines.shape(1), cosines.shape(0)};
    }
    for (const py::dict& layer : layers) add(layer);
    require(takes_panels(s_) || takes_rows(s_), "stack: weights must all multiply panels or rows");
  }

  void run(const Floats& x, const std::vector<int64_t>& lengths, Floats y, BoundCache* cache,
           const std::optional<Integers>& positions, BoundCache* memory,
           const std::optional<std::string>& isa) const {
    require(cache == nullptr || cache != memory, "stack: cache and memory must not be the same");
    std::unique_lock<std::mutex> held, held_memory;
    {
      py::gil_scoped_release release;
      if (cache) held = std::unique_lock<std::mutex>(cache->mutex, std::defer_lock);
      if (memory) held_memory = std::unique_lock<std::mutex>(memory->mutex, std::defer_lock);
      if (cache && memory)
        std::lock(held, held_memory);
      else if (cache)
        held.lock();
      else if (memory)
        held_memory.lock();
    }
    KvCache* kv = cache ? &cache->cache : nullptr;
    if (kv) require_fits(*kv, lengths.size());
    const KvCache* from = memory ? &memory->cache : nullptr;
    require(s_.crosses() == (from != nullptr), "stack: cross attention, and only it, has a memory");
    if (from) {
      require_fits(*from, lengths.size());
      for (int64_t i = 0; i < from->sequences(); ++i)
        require(from->length(i) > 0, "stack: a sequence of the memory is empty");
    }
    int64_t tokens = 0;
    for (size_t i = 0; i < lengths.size(); ++i) {
      const int64_t n = lengths[i], before = kv ? kv->length(static_cast<int64_t>(i)) : 0;
      require(n >= 0 && n <= (1 << 24), "lengths must not be negative");
      require(!s_.bias || before + n <= s_.reach, "a sequence is longer than the position bias");
      tokens += n;
    }
    require(x.ndim() == 2 && y.ndim() == 2 && x.shape(0) == tokens && y.shape(0) == tokens &&
                x.shape(1) == s_.hidden && y.shape(1) == s_.hidden,
            "x and y must be [sum of lengths, hidden]");
    require(!s_.rotary.half || (positions && positions->size() == tokens),
            "rotary positions must be one a token");
    if (s_.rotary.half)
      for (int64_t t = 0; t < tokens; ++t)
        require(positions->data()[t] >= 0 && positions->data()[t] < s_.rotary.positions,
                "a position lies outside the rotary tables");
    require(takes_panels(s_) || (kv && tokens <= kRowTokens),
            "stack: so many tokens need weights that multiply panels");
    const Capabilities caps = capabilities_or_active(isa);
    const Batch batch{
        x.data(), y.mutable_data(), lengths, positions ? positions->data() : nullptr, kv, from};
    py::gil_scoped_release release;
    if (kv)
      for (size_t i = 0; i < lengths.size(); ++i) kv->reserve(static_cast<int64_t>(i), lengths[i]);
    se::run(s_, batch, caps);
  }

  void remember(const Floats& x, const std::vector<int64_t>& lengths, BoundCache& memory,
                const std::optional<std::string>& isa) const {
    const auto held = memory.lock();
    require(s_.crosses(), "stack: there is no cross attention that would read a memory");
    require(takes_panels(s_), "stack: a memory needs weights that multiply panels");
    require_fits(memory.cache, lengths.size());
    int64_t tokens = 0;
    for (size_t i = 0; i < lengths.size(); ++i) {
      require(lengths[i] > 0 && lengths[i] <= (1 << 24), "lengths must be 1 or more");
      require(memory.cache.length(static_cast<int64_t>(i)) == 0, "the memory is not empty");
      tokens += lengths[i];
    }
    require(x.ndim() == 2 && x.shape(0) == tokens && x.shape(1) == s_.hidden,
            "x must be [sum of lengths, hidden]");
    const Capabilities caps = capabilities_or_active(isa);
    const float* from = x.data();
    py::gil_scoped_release release;
    for (size_t i = 0; i < lengths.size(); ++i)
      memory.cache.reserve(static_cast<int64_t>(i), lengths[i]);
    se::remember(s_, from, lengths, memory.cache, caps);
  }

 private:
  void require_fits(const KvCache& cache, size_t sequences) const {
    require(cache.layers() == static_cast<int64_t>(s_.layers.size()) &&
                cache.key_heads() == s_.key_heads && cache.head() == s_.head &&
                cache.sequences() == static_cast<int64_t>(sequences) && s_.causal,
            "the cache is another model's, or has another number of sequences");
  }

  const float* keep(const Floats& a) {
    kept_.push_back(a);
    return a.data();
  }

  const PackedWeight* weight(const py::object& given, int64_t out, int64_t in, bool panels) {
    if (given.is_none()) return nullptr;
    const Weight& w = given.cast<const Weight&>();
    require(w.out() == out && w.in() == in, "stack: a weight has the wrong shape");
    const bool runs = std::holds_alternative<Runs>(w.view());
    require(panels ? runs || std::holds_alternative<Strips>(w.view()) : !runs,
            panels ? "stack: panels are multiplied with runs or strips"
                   : "stack: rows are multiplied with anything but runs");
    kept_.push_back(given);
    return &w.view();
  }

  LayerLinear linear(const py::handle& given, int64_t out, int64_t in) {
    if (given.is_none()) return {};
    const auto [panels, rows, bias] =
        given.cast<std::tuple<py::object, py::object, std::optional<Floats>>>();
    require(!bias || bias->size() == out, "stack: a bias has the wrong size");
    return {weight(panels, out, in, true), weight(rows, out, in, false),
            bias ? keep(*bias) : nullptr};
  }

  // Null for None.
  const Norm* norm(const py::handle& given, int64_t features) {
    if (given.is_none()) return nullptr;
    const auto [gamma, beta, epsilon, rms] =
        given.cast<std::tuple<std::optional<Floats>, std::optional<Floats>, float, bool>>();
    require((!gamma || gamma->size() == features) && (!beta || beta->size() == features),
            "stack: a norm has the wrong size");
    norms_.push_back({gamma ? keep(*gamma) : nullptr, beta ? keep(*beta) : nullptr, epsilon, rms});
    return &norms_.back();
  }

  void add(const py::dict& layer) {
    Fields f(layer);
    const int64_t queries = s_.query_rows(), keys = s_.key_rows();
    Layer l{};
    const auto key = f.get<py::object>("key"), value = f.get<py::object>("value");
    require(key.is_none() == value.is_none(), "stack: key and value come together");
    l.query =
        linear(f.get<py::object>("query"), key.is_none() ? s_.qkv_rows() : queries, s_.hidden);
    l.key = linear(key, keys, s_.hidden);
    l.value = linear(value, keys, s_.hidden);
    l.output = linear(f.get<py::object>("output"), s_.hidden, queries);
    l.gate = linear(f.get<py::object>("gate"), s_.inner, s_.hidden);
    l.up = linear(f.get<py::object>("up"), s_.inner, s_.hidden);
    l.down = linear(f.get<py::object>("down"), s_.hidden, s_.inner);
    for (const LayerLinear* b : {&l.query, &l.output, &l.up, &l.down})
      require(static_cast<bool>(*b), "stack: only gate, key and value may be left out");
    const Norm* norm1 = norm(f.get<py::object>("norm1"), s_.hidden);
    const Norm* norm2 = norm(f.get<py::object>("norm2"), s_.hidden);
    require(norm1 && norm2, "stack: a layer has two norms");
    l.norm1 = *norm1;
    l.norm2 = *norm2;
    l.cross_query = linear(f.get<py::object>("cross_query"), queries, s_.hidden);
    l.cross_key = linear(f.get<py::object>("cross_key"), keys, s_.hidden);
    l.cross_value = linear(f.get<py::object>("cross_value"), keys, s_.hidden);
    l.cross_output = linear(f.get<py::object>("cross_output"), s_.hidden, queries);
    const Norm* cross_norm = norm(f.get<py::object>("cross_norm"), s_.hidden);
    const bool crosses = static_cast<bool>(l.cross_query);
    require(static_cast<bool>(l.cross_output) == crosses && (cross_norm != nullptr) == crosses &&
                (l.cross_key.panels != nullptr) == crosses &&
                (l.cross_value.panels != nullptr) == crosses &&
                (s_.layers.empty() || s_.crosses() == crosses),
            "stack: cross attention has four weights, keys and values for panels, and a norm");
    if (crosses) l.cross_norm = *cross_norm;
    l.query_norm = norm(f.get<py::object>("query_norm"), s_.head);
    l.key_norm = norm(f.get<py::object>("key_norm"), s_.head);
    f.end();
    s_.layers.push_back(l);
  }

  Stack s_{};
  std::deque<Norm> norms_;  // never move
  std::vector<py::object> kept_;
};

}  // namespace

void bind_stack(py::module_& m) {
  py::class_<BoundCache>(m, "KvCache", "Keys and values of csrc/layers/cache.h.")
      .def(py::init<int64_t, int64_t, int64_t, int64_t, const std::string&>(), py::arg("layers"),
           py::arg("key_heads"), py::arg("head"), py::arg("sequences"),
           py::arg("dtype") = "float32")
      .def_property_readonly("dtype", &BoundCache::dtype)
      .def_property_readonly("lengths", &BoundCache::lengths)
      .def_property_readonly("nbytes", &BoundCache::bytes)
      .def("copy", &BoundCache::copy, "Another one, that shares what neither writes to.")
      .def("crop", &BoundCache::crop, py::arg("lengths"), "Keep the first positions of each.")
      .def("select", &BoundCache::select, py::arg("sequences"),
           "Sequence i becomes a copy of sequences[i]; they share what neither writes to.");
  py::class_<BoundStack>(m, "Stack", "Layers of csrc/layers/stack.h.")
      .def(py::init<const py::dict&, const std::vector<py::dict>&>(), py::arg("config"),
           py::arg("layers"))
      .def("run", &BoundStack::run, py::arg("x").noconvert(), py::arg("lengths"),
           py::arg("y").noconvert(), py::arg("cache") = py::none(),
           py::arg("positions") = py::none(), py::arg("memory") = py::none(),
           py::arg("isa") = py::none(),
           "Sequences one after another, [sum of lengths, hidden] float32 in and out.")
      .def("remember", &BoundStack::remember, py::arg("x").noconvert(), py::arg("lengths"),
           py::arg("memory"), py::arg("isa") = py::none(),
           "Fill an empty cache with what cross attention reads of an encoder's states.");
}

}  // namespace se
