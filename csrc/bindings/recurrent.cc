#include "layers/recurrent.h"

#include <utility>

#include "bindings/weight.h"

namespace se {
namespace {

using Floats = py::array_t<float, py::array::c_style>;
// Packed for many tokens, and for a few; the bias.
using GivenLinear = std::tuple<py::object, py::object, std::optional<Floats>>;
using GivenLayer = std::vector<std::tuple<GivenLinear, GivenLinear, std::optional<GivenLinear>>>;

// A network and everything that its pointers point into.
class BoundRecurrent {
 public:
  BoundRecurrent(int cell, int64_t in, int64_t units, int64_t out, int64_t directions,
                 const std::vector<GivenLayer>& layers) {
    require(cell >= 0 && cell <= 3, "recurrent: unknown cell");
    for (const int64_t size : {in, units, out})
      require(size > 0 && size <= (1 << 20), "recurrent: sizes must be from 1 to 2^20");
    require(directions == 1 || directions == 2, "recurrent: one direction or two");
    require(!layers.empty(), "recurrent: there are no layers");
    n_.cell = static_cast<Cell>(cell);
    n_.in = in;
    n_.units = units;
    n_.out = out;
    n_.directions = directions;
    require(out == units || n_.cell == Cell::lstm, "recurrent: only an LSTM has a projection");
    for (const GivenLayer& layer : layers) {
      require(static_cast<int64_t>(layer.size()) == directions, "recurrent: a part is missing");
      const int64_t features = n_.layers.empty() ? in : directions * out;
      n_.layers.emplace_back();
      for (const auto& [input, hidden, project] : layer) {
        RecurrentLinears l{linear(input, n_.rows(), features, 1),
                           linear(hidden, n_.rows(), out, n_.block_rows()),
                           {}};
        require(project.has_value() == (out != units), "recurrent: a projection is missing");
        if (project) l.project = linear(*project, out, units, 1);
        require(l.input && (takes_rows(l) || takes_panels(l)),
                "recurrent: weights must all multiply panels or rows");
        n_.layers.back().push_back(l);
      }
    }
  }

  void run(const Floats& x, std::vector<int64_t> sizes, Floats y, const std::optional<Floats>& h0,
           const std::optional<Floats>& c0, Floats hn, std::optional<Floats> cn,
           const std::optional<std::string>& isa) const {
    require(!sizes.empty(), "recurrent: there are no steps");
    int64_t tokens = 0, before = sizes[0];
    for (const int64_t size : sizes) {
      require(size > 0 && size <= before, "recurrent: sizes must not increase, nor be zero");
      tokens += before = size;
    }
    require(x.ndim() == 2 && x.shape(0) == tokens && x.shape(1) == n_.in,
            "recurrent: x must be [sum of sizes, in]");
    require(y.ndim() == 2 && y.shape(0) == tokens && y.shape(1) == n_.directions * n_.out &&
                y.data() != x.data(),
            "recurrent: y must be [sum of sizes, directions * out]");
    const int64_t states = static_cast<int64_t>(n_.layers.size()) * n_.directions * sizes[0];
    const bool lstm = n_.cell == Cell::lstm;
    require((!h0 || h0->size() == states * n_.out) && hn.size() == states * n_.out &&
                (!c0 || (lstm && c0->size() == states * n_.units)) && lstm == cn.has_value() &&
                (!cn || cn->size() == states * n_.units),
            "recurrent: a state has the wrong size");
    const Capabilities caps = capabilities_or_active(isa);
    const Sequences s{x.data(),
                      std::move(sizes),
                      y.mutable_data(),
                      h0 ? h0->data() : nullptr,
                      c0 ? c0->data() : nullptr,
                      hn.mutable_data(),
                      cn ? cn->mutable_data() : nullptr};
    py::gil_scoped_release release;
    se::run(n_, s, caps);
  }

 private:
  // Chunks of rows that panels are multiplied with must be whole blocks of `block` rows.
  LayerLinear linear(const GivenLinear& given, int64_t out, int64_t in, int64_t block) {
    const auto& [panels, rows, bias] = given;
    require(!bias || bias->size() == out, "recurrent: a bias has the wrong size");
    const PackedWeight *many = weight(panels, out, in), *few = weight(rows, out, in);
    if (many) {
      const Runs* runs = std::get_if<Runs>(many);
      const Strips* strips = std::get_if<Strips>(many);
      require(runs || strips, "recurrent: panels are multiplied with runs or strips");
      require(runs ? runs->chunk % block == 0 || runs->chunks == 1
                   : block == 1 || block % strips->height == 0,
              "recurrent: a chunk of rows cuts a block of units");
    }
    require(!few || !std::holds_alternative<Runs>(*few),
            "recurrent: rows are multiplied with anything but runs");
    if (bias) kept_.push_back(*bias);
    return {many, few, bias ? bias->data() : nullptr};
  }

  const PackedWeight* weight(const py::object& given, int64_t out, int64_t in) {
    if (given.is_none()) return nullptr;
    const Weight& w = given.cast<const Weight&>();
    require(w.out() == out && w.in() == in, "recurrent: a weight has the wrong shape");
    kept_.push_back(given);
    return &w.view();
  }

  Recurrent n_{};
  std::vector<py::object> kept_;
};

}  // namespace

void bind_recurrent(py::module_& m) {
  m.attr("ROW_TOKENS") = kRowTokens;
  py::class_<BoundRecurrent>(m, "Recurrent", "Networks of csrc/layers/recurrent.h.")
      .def(py::init<int, int64_t, int64_t, int64_t, int64_t, const std::vector<GivenLayer>&>(),
           py::arg("cell"), py::arg("in_features"), py::arg("units"), py::arg("out"),
           py::arg("directions"), py::arg("layers"))
      .def(
          "run", &BoundRecurrent::run, py::arg("x").noconvert(), py::arg("sizes"),
          py::arg("y").noconvert(), py::arg("h0"), py::arg("c0"), py::arg("hn").noconvert(),
          py::arg("cn"), py::arg("isa") = py::none(),
          "Steps one after another, [sum of sizes, in] float32 in and [.., directions * out] out.");
}

}  // namespace se
