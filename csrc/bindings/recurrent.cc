#include "layers/recurrent.h"

#include <map>
#include <utility>

#include "bindings/weight.h"

namespace se {
namespace {

using Floats = py::array_t<float, py::array::c_style>;

// torch's names of the cells.
const std::map<std::string, Cell> kModes{
    {"RNN_TANH", Cell::tanh}, {"RNN_RELU", Cell::relu}, {"LSTM", Cell::lstm}, {"GRU", Cell::gru}};
const std::map<std::string, RecurrentPath> kPaths{{"panels", RecurrentPath::panels},
                                                  {"rows", RecurrentPath::rows},
                                                  {"few_tokens", RecurrentPath::few_tokens}};

template <class T>
T parse(const std::map<std::string, T>& names, const std::string& name, const char* message) {
  const auto found = names.find(name);
  require(found != names.end(), message);
  return found->second;
}

const char* path_name(int64_t sequences, int64_t tokens, bool tall_blocks) {
  const RecurrentPath path = recurrent_path(sequences, tokens, tall_blocks);
  for (const auto& [name, value] : kPaths)
    if (value == path) return name.c_str();
  return nullptr;
}

std::map<std::string, int64_t> gate_counts() {
  std::map<std::string, int64_t> gates;
  for (const auto& [mode, cell] : kModes) gates[mode] = gates_of(cell);
  return gates;
}

// The linear layers of one direction, with references that keep their memory alive.
struct BoundDirection {
  py::object input, hidden, projection;
  std::optional<Floats> input_bias, hidden_bias;

  BoundDirection(py::object input_weight, py::object hidden_weight, py::object projection_weight,
                 std::optional<Floats> bias_of_input, std::optional<Floats> bias_of_hidden)
      : input(std::move(input_weight)),
        hidden(std::move(hidden_weight)),
        projection(std::move(projection_weight)),
        input_bias(std::move(bias_of_input)),
        hidden_bias(std::move(bias_of_hidden)) {
    require(py::isinstance<Weight>(input) && py::isinstance<Weight>(hidden) &&
                (projection.is_none() || py::isinstance<Weight>(projection)),
            "recurrent: input, hidden and projection must be Weights");
  }
};

// A checked network and the owners of its memory.
class BoundNetwork {
 public:
  BoundNetwork(const std::string& mode, const std::string& path, int64_t input_size,
               int64_t hidden_size, int64_t output_size,
               std::vector<std::vector<BoundDirection>> layers)
      : owners_(std::move(layers)) {
    n_.cell = parse(kModes, mode, "recurrent: mode must be LSTM, GRU, RNN_TANH or RNN_RELU");
    n_.path = parse(kPaths, path, "recurrent: path must be panels, rows or few_tokens");
    for (const int64_t size : {input_size, hidden_size, output_size})
      require(size > 0 && size <= (1 << 20), "recurrent: sizes must be from 1 to 2^20");
    require(!owners_.empty(), "recurrent: there are no layers");
    n_.input_size = input_size;
    n_.hidden_size = hidden_size;
    n_.output_size = output_size;
    n_.directions = static_cast<int64_t>(owners_[0].size());
    require(n_.directions == 1 || n_.directions == 2, "recurrent: one direction or two");
    const bool projects = output_size != hidden_size;
    require(!projects || n_.cell == Cell::lstm, "recurrent: only an LSTM has a projection");
    for (const auto& layer : owners_) {
      require(static_cast<int64_t>(layer.size()) == n_.directions,
              "recurrent: layers differ in their directions");
      const int64_t features = n_.layers.empty() ? input_size : n_.directions * output_size;
      n_.layers.emplace_back();
      for (const BoundDirection& d : layer) {
        require(!d.projection.is_none() == projects,
                "recurrent: a projection is missing or not expected");
        RecurrentLinears l{};
        l.input = linear(d.input, d.input_bias, n_.rows(), features);
        l.hidden = linear(d.hidden, d.hidden_bias, n_.rows(), output_size);
        if (projects) l.projection = linear(d.projection, {}, output_size, hidden_size);
        check_path(l);
        n_.layers.back().push_back(l);
      }
    }
  }

  // initial, final: h, and c of an LSTM; initial may be empty for zeros.
  void run(const Floats& x, std::vector<int64_t> batch_sizes, Floats y,
           const std::vector<Floats>& initial, std::vector<Floats> final,
           const std::optional<std::string>& isa) const {
    require(!batch_sizes.empty(), "recurrent: there are no time steps");
    int64_t tokens = 0, previous = batch_sizes[0];
    for (const int64_t size : batch_sizes) {
      require(size > 0 && size <= previous,
              "recurrent: batch sizes must not increase, nor be zero");
      tokens += previous = size;
    }
    require(x.ndim() == 2 && x.shape(0) == tokens && x.shape(1) == n_.input_size,
            "recurrent: x must be [tokens, input_size]");
    require(y.ndim() == 2 && y.shape(0) == tokens && y.shape(1) == n_.directions * n_.output_size &&
                y.data() != x.data(),
            "recurrent: y must be [tokens, directions * output_size]");
    const int64_t states = static_cast<int64_t>(n_.layers.size()) * n_.directions * batch_sizes[0];
    require(initial.empty() || are_states(initial, states), "recurrent: wrong initial states");
    require(are_states(final, states), "recurrent: wrong final states");
    const bool lstm = n_.cell == Cell::lstm;
    const Capabilities caps = capabilities_or_active(isa);
    const SequenceBatch batch{x.data(),
                              std::move(batch_sizes),
                              y.mutable_data(),
                              initial.empty() ? nullptr : initial[0].data(),
                              initial.empty() || !lstm ? nullptr : initial[1].data(),
                              final[0].mutable_data(),
                              lstm ? final[1].mutable_data() : nullptr};
    py::gil_scoped_release release;
    se::run(n_, batch, caps);
  }

 private:
  bool are_states(const std::vector<Floats>& states, int64_t count) const {
    const bool lstm = n_.cell == Cell::lstm;
    return states.size() == (lstm ? 2 : 1) && states[0].size() == count * n_.output_size &&
           (!lstm || states[1].size() == count * n_.hidden_size);
  }

  static RecurrentLinear linear(const py::object& object, const std::optional<Floats>& bias,
                                int64_t out, int64_t in) {
    const Weight& weight = object.cast<const Weight&>();
    require(weight.out() == out && weight.in() == in, "recurrent: a weight has the wrong shape");
    require(!bias || bias->size() == out, "recurrent: a bias has the wrong size");
    return {&weight.view(), bias ? bias->data() : nullptr};
  }

  // Whether each packing has the kernels that the path needs.
  void check_path(const RecurrentLinears& l) const {
    const bool panels = n_.path == RecurrentPath::panels;
    const bool many = n_.path != RecurrentPath::few_tokens;
    const bool lists = many && std::holds_alternative<Columns>(*l.input.weight);
    require((lists || multiplies(l.input, many)) && multiplies(l.hidden, panels) &&
                multiplies(l.projection, panels),
            "recurrent: panels need runs or strips, rows any packing but runs");
    if (!panels) return;
    const Runs* runs = std::get_if<Runs>(l.hidden.weight);
    const int64_t rows = n_.tile_rows();
    require(runs ? runs->chunk % rows == 0 || runs->chunks == 1
                 : rows % std::get<Strips>(*l.hidden.weight).height == 0,
            "recurrent: a chunk of rows cuts a tile of units");
  }
  static bool multiplies(const RecurrentLinear& linear, bool panels) {
    if (!linear) return true;
    const bool runs = std::holds_alternative<Runs>(*linear.weight);
    if (panels) return runs || std::holds_alternative<Strips>(*linear.weight);
    return !runs && !std::holds_alternative<Columns>(*linear.weight);
  }

  const std::vector<std::vector<BoundDirection>> owners_;
  RecurrentNetwork n_{};
};

}  // namespace

void bind_recurrent(py::module_& m) {
  m.attr("RECURRENT_GATES") = gate_counts();
  m.def("recurrent_path", &path_name, py::arg("sequences"), py::arg("tokens"),
        py::arg("tall_blocks"),
        "The packings that a call multiplies: see csrc/layers/recurrent.h.");
  py::class_<BoundDirection>(m, "RecurrentDirection", "The linear layers of one direction.")
      .def(py::init<py::object, py::object, py::object, std::optional<Floats>,
                    std::optional<Floats>>(),
           py::kw_only(), py::arg("input"), py::arg("hidden"), py::arg("projection") = py::none(),
           py::arg("input_bias") = py::none(), py::arg("hidden_bias") = py::none());
  py::class_<BoundNetwork>(m, "RecurrentNetwork", "A network: see csrc/layers/recurrent.h.")
      .def(py::init<const std::string&, const std::string&, int64_t, int64_t, int64_t,
                    std::vector<std::vector<BoundDirection>>>(),
           py::kw_only(), py::arg("mode"), py::arg("path"), py::arg("input_size"),
           py::arg("hidden_size"), py::arg("output_size"), py::arg("layers"))
      .def("run", &BoundNetwork::run, py::arg("x").noconvert(), py::arg("batch_sizes"),
           py::arg("y").noconvert(), py::arg("initial"), py::arg("final").noconvert(),
           py::arg("isa") = py::none(),
           "Runs a packed batch: x [tokens, input_size] to y [tokens, directions * output_size].");
}

}  // namespace se
