#include "blocks/encoder.h"

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
  void end() const { require(read_ == dict_.size(), "fields that no encoder knows"); }

 private:
  const py::dict& dict_;
  size_t read_ = 0;
};

// An encoder and everything that its pointers point into.
class BoundEncoder {
 public:
  BoundEncoder(const py::dict& config, const std::vector<py::dict>& layers) {
    Fields f(config);
    e_.hidden = f.get<int64_t>("hidden");
    e_.heads = f.get<int64_t>("heads");
    e_.key_heads = f.get<int64_t>("key_heads");
    e_.head = f.get<int64_t>("head");
    e_.inner = f.get<int64_t>("inner");
    e_.activation = static_cast<Activation>(f.get<int>("activation"));
    e_.norm_first = f.get<bool>("norm_first");
    e_.causal = f.get<bool>("causal");
    e_.window = f.get<int64_t>("window");
    e_.scale = f.get<float>("scale");
    const auto bias = f.get<std::optional<Floats>>("bias");
    f.end();
    for (const int64_t size : {e_.hidden, e_.heads, e_.key_heads, e_.head, e_.inner})
      require(size > 0 && size <= (1 << 20), "encoder: sizes must be 1 or more");
    require(e_.heads % e_.key_heads == 0, "encoder: heads must be a multiple of key_heads");
    require(static_cast<int>(e_.activation) >= 0 && static_cast<int>(e_.activation) <= 4,
            "unknown activation");
    if (bias) {
      require(bias->ndim() == 2 && bias->shape(0) == e_.heads && bias->shape(1) % 2 == 1,
              "encoder: bias must be [heads, 2 reach - 1]");
      e_.reach = (bias->shape(1) + 1) / 2;
      e_.bias = keep(*bias);
    }
    for (const py::dict& layer : layers) add(layer);
  }

  void encode(const Floats& x, const std::vector<int64_t>& lengths, Floats y,
              const std::optional<std::string>& isa) const {
    int64_t tokens = 0;
    for (const int64_t n : lengths) {
      require(n >= 0 && n <= (1 << 24), "lengths must not be negative");
      require(!e_.bias || n <= e_.reach, "a sequence is longer than the position bias");
      tokens += n;
    }
    require(x.ndim() == 2 && y.ndim() == 2 && x.shape(0) == tokens && y.shape(0) == tokens &&
                x.shape(1) == e_.hidden && y.shape(1) == e_.hidden,
            "x and y must be [sum of lengths, hidden]");
    const Isa level = isa_or_active(isa);
    const float* from = x.data();
    float* to = y.mutable_data();
    py::gil_scoped_release release;
    se::encode(e_, from, lengths, to, level);
  }

 private:
  const float* keep(const Floats& a) {
    kept_.push_back(a);
    return a.data();
  }

  BlockLinear linear(const py::handle& given, int64_t out, int64_t in) {
    if (given.is_none()) return {nullptr, nullptr};
    const auto pair = given.cast<std::pair<py::object, std::optional<Floats>>>();
    const Weight& w = pair.first.cast<const Weight&>();
    require(w.out() == out && w.in() == in, "encoder: a weight has the wrong shape");
    require(std::holds_alternative<Runs>(w.view()) || std::holds_alternative<Strips>(w.view()),
            "encoder: pack weights as runs or strips");
    kept_.push_back(pair.first);
    const float* bias = nullptr;
    if (pair.second) {
      require(pair.second->size() == out, "encoder: a bias has the wrong size");
      bias = keep(*pair.second);
    }
    return {&w.view(), bias};
  }

  Norm norm(const py::handle& given) {
    const auto [gamma, beta, epsilon, rms] =
        given.cast<std::tuple<std::optional<Floats>, std::optional<Floats>, float, bool>>();
    require((!gamma || gamma->size() == e_.hidden) && (!beta || beta->size() == e_.hidden),
            "encoder: a norm has the wrong size");
    return {gamma ? keep(*gamma) : nullptr, beta ? keep(*beta) : nullptr, epsilon, rms};
  }

  void add(const py::dict& layer) {
    Fields f(layer);
    const int64_t queries = e_.heads * e_.head, keys = e_.key_heads * e_.head;
    EncoderLayer l{};
    l.query = linear(f.get<py::object>("query"), queries, e_.hidden);
    l.key = linear(f.get<py::object>("key"), keys, e_.hidden);
    l.value = linear(f.get<py::object>("value"), keys, e_.hidden);
    l.output = linear(f.get<py::object>("output"), e_.hidden, queries);
    l.gate = linear(f.get<py::object>("gate"), e_.inner, e_.hidden);
    l.up = linear(f.get<py::object>("up"), e_.inner, e_.hidden);
    l.down = linear(f.get<py::object>("down"), e_.hidden, e_.inner);
    for (const BlockLinear* b : {&l.query, &l.key, &l.value, &l.output, &l.up, &l.down})
      require(b->weight, "encoder: only the gate may be left out");
    l.norm1 = norm(f.get<py::object>("norm1"));
    l.norm2 = norm(f.get<py::object>("norm2"));
    f.end();
    e_.layers.push_back(l);
  }

  Encoder e_{};
  std::vector<py::object> kept_;
};

}  // namespace

void bind_encoder(py::module_& m) {
  py::class_<BoundEncoder>(m, "Encoder", "A stack of encoder layers of csrc/blocks/encoder.h.")
      .def(py::init<const py::dict&, const std::vector<py::dict>&>(), py::arg("config"),
           py::arg("layers"))
      .def("encode", &BoundEncoder::encode, py::arg("x").noconvert(), py::arg("lengths"),
           py::arg("y").noconvert(), py::arg("isa") = py::none(),
           "Sequences one after another, [sum of lengths, hidden] float32 in and out.");
}

}  // namespace se
