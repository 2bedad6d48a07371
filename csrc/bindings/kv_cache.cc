#include "bindings/kv_cache.h"

#include <numeric>

namespace se {
namespace {

constexpr int64_t kMostSequences = 1 << 20;

std::vector<KvHeads> checked_layers(const std::vector<std::pair<int64_t, int64_t>>& layers) {
  require(!layers.empty() && layers.size() <= 4096, "cache: there must be 1 to 4096 layers");
  std::vector<KvHeads> checked;
  for (const auto& [key_heads, head_size] : layers) {
    require(key_heads > 0 && key_heads <= 4096, "cache: key_heads must be 1 to 4096");
    require(head_size > 0 && head_size <= 65536, "cache: head_size must be 1 to 65536");
    checked.push_back({key_heads, head_size});
  }
  return checked;
}

int64_t checked_sequences(int64_t sequences) {
  require(sequences > 0 && sequences <= kMostSequences, "cache: sequences must be 1 or more");
  return sequences;
}

DType checked_dtype(const std::string& name) {
  const DType dtype = parse_dtype(name);
  require(dtype != DType::i8, "cache: dtype must be float32 or bfloat16");
  return dtype;
}

}  // namespace

BoundCache::BoundCache(const std::vector<std::pair<int64_t, int64_t>>& layers, int64_t sequences,
                       const std::string& dtype)
    : cache(checked_layers(layers), checked_sequences(sequences), checked_dtype(dtype)) {}

std::unique_lock<std::mutex> BoundCache::lock() const {
  py::gil_scoped_release release;
  return std::unique_lock<std::mutex>(mutex);
}

std::unique_ptr<BoundCache> BoundCache::copy() const {
  const auto held = lock();
  auto twin = std::make_unique<BoundCache>(cache);
  std::vector<int64_t> all(cache.sequences());
  std::iota(all.begin(), all.end(), int64_t{0});
  twin->cache.select(all);  // drops reserved pages past the end
  return twin;
}

std::vector<int64_t> BoundCache::lengths() const {
  const auto held = lock();
  std::vector<int64_t> all;
  for (int64_t i = 0; i < cache.sequences(); ++i) all.push_back(cache.length(i));
  return all;
}

int64_t BoundCache::bytes() const {
  const auto held = lock();
  return cache.bytes();
}

void BoundCache::crop(const std::vector<int64_t>& lengths) {
  const auto held = lock();
  require(static_cast<int64_t>(lengths.size()) == cache.sequences(),
          "cache: crop needs a length for each sequence");
  for (int64_t i = 0; i < cache.sequences(); ++i)
    require(lengths[i] >= 0 && lengths[i] <= cache.length(i), "cache: crop only shortens");
  for (int64_t i = 0; i < cache.sequences(); ++i) cache.crop(i, lengths[i]);
}

void BoundCache::select(const std::vector<int64_t>& from) {
  const auto held = lock();
  require(!from.empty() && from.size() <= kMostSequences,
          "cache: select needs at least one sequence");
  for (const int64_t i : from)
    require(i >= 0 && i < cache.sequences(), "cache: there is no such sequence");
  cache.select(from);
}

void bind_kv_cache(py::module_& m) {
  py::class_<BoundCache>(m, "KvCache", "Keys and values of csrc/layers/cache.h.")
      .def(py::init<const std::vector<std::pair<int64_t, int64_t>>&, int64_t, const std::string&>(),
           py::arg("layers"), py::arg("sequences"), py::arg("dtype") = "float32",
           "An empty cache; layers: (key_heads, head_size) of each, as Stack.kv_heads.")
      .def_property_readonly("dtype", &BoundCache::dtype)
      .def_property_readonly("lengths", &BoundCache::lengths)
      .def_property_readonly("nbytes", &BoundCache::bytes)
      .def("copy", &BoundCache::copy, "A copy that shares the pages that neither writes to.")
      .def("crop", &BoundCache::crop, py::arg("lengths"),
           "Keep the first lengths[i] positions of sequence i.")
      .def("select", &BoundCache::select, py::arg("sequences"),
           "Sequence i becomes a copy of sequences[i]; pages are shared until one writes.");
}

}  // namespace se
