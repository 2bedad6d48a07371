#include <algorithm>

#include "bindings/weight.h"
#include "kernels/table.h"
#include "ops/conv1d.h"

namespace se {
namespace {

py::list kernels() {
  std::vector<KernelInfo> rows;
  list_spmm_columns(rows);
  list_spmm_half_runs(rows);
  list_spmm_runs(rows);
  list_spmm_strips(rows);
  list_spmm_tiles(rows);
  list_spmv_bits(rows);
  list_spmv_groups(rows);
  list_spmv_sellp(rows);
  list_spmv_strips(rows);
  list_spmv_tiles(rows);
  py::list out;
  for (const KernelInfo& k : rows) {
    py::dict row;
    row["name"] = k.name;
    row["op"] = k.op;
    row["packing"] = k.packing;
    row["dtype"] = dtype_name(k.weight);
    row["isa"] = k.target.name;
    row["needs"] = capability_names(k.target.needs);
    row["supported"] = detected_capabilities().covers(k.target.needs);
    out.append(row);
  }
  return out;
}

// A view without buffers, for the name of the kernel of a packing.
template <size_t I = 0>
PackedWeight unbacked_weight(const std::string& packing, DType dtype) {
  if constexpr (I == std::variant_size_v<PackedWeight>) {
    throw std::invalid_argument("unknown packing " + packing);
  } else {
    using Layout = std::variant_alternative_t<I, PackedWeight>;
    if (packing != Layout::kPacking) return unbacked_weight<I + 1>(packing, dtype);
    Layout w{};
    w.dtype = dtype;
    return w;
  }
}

// Accepts capabilities that this machine lacks, since no kernel runs.
std::string linear_kernel_py(const std::string& packing, const std::string& dtype, int64_t tokens,
                             const std::optional<std::string>& isa) {
  const Capabilities caps =
      isa ? parse_capabilities(*isa, native_capabilities()) : active_capabilities();
  if (packing != Runs::kHalfPacking)
    return linear_kernel(unbacked_weight(packing, parse_dtype(dtype)), tokens, caps);
  const float power = 1;
  Runs w{};
  w.dtype = parse_dtype(dtype);
  w.powers = &power;
  return linear_kernel(w, tokens, caps);
}

// The stride of `axis` in floats; throws std::invalid_argument unless times are contiguous.
int64_t stride_of(const py::array& a, int axis, const char* what) {
  if (a.size() == 0) return 0;  // numpy leaves these strides undefined
  const int64_t stride = a.strides(axis);
  if ((a.shape(2) > 1 && a.strides(2) != a.itemsize()) ||
      (a.shape(axis) > 1 && (stride < 0 || stride % a.itemsize() != 0)))
    throw std::invalid_argument(std::string(what) + " must have contiguous times");
  return stride / a.itemsize();
}

}  // namespace

Weight::Weight(const std::string& packing, std::vector<py::array> buffers,
               const std::vector<int64_t>& params, int64_t out, int64_t in)
    : buffers_(std::move(buffers)),
      in_(in),
      out_(out),
      view_(view_of(packing, buffers_, params, out, in)) {}

void Weight::linear(const py::array& x, py::array y, const std::optional<py::array_t<float>>& bias,
                    const std::optional<py::array>& residual, int activation,
                    const std::optional<std::string>& isa) const {
  require(x.ndim() == 2 && y.ndim() == 2 && x.shape(0) == y.shape(0) && x.shape(1) == in_ &&
              y.shape(1) == out_,
          "x must be [tokens, in] and y [tokens, out]");
  const Epilogue e = epilogue_of(y, bias, residual, activation);
  const Activations a{x.data(), dtype_of(x, "x"), row_stride(x, "x"), x.shape(0), in_};
  const Capabilities caps = capabilities_or_active(isa);
  py::gil_scoped_release release;
  std::visit([&](const auto& w) { se::linear(w, a, e, caps); }, view_);
}

int64_t Weight::panel_width(int64_t tokens, const std::optional<std::string>& isa) const {
  const bool panels = std::holds_alternative<Runs>(view_) ||
                      std::holds_alternative<Strips>(view_) ||
                      std::holds_alternative<Columns>(view_);
  return panels ? linear_panel_width(view_, tokens, capabilities_or_active(isa)) : 0;
}

void Weight::linear_on_panels(const py::array_t<float>& x, py::array_t<float> y,
                              const std::optional<py::array_t<float>>& bias, int activation,
                              const std::optional<std::string>& isa) const {
  require(panel_width(1, isa) != 0, "only runs, strips and columns have kernels for panels");
  require(x.ndim() == 3 && y.ndim() == 3 && x.shape(0) == y.shape(0) && x.shape(1) == in_ &&
              y.shape(1) == out_ && x.shape(2) == y.shape(2) && contiguous(x) && contiguous(y),
          "x must be [panels, in, width] and y [panels, out, width], contiguous");
  require(panel_width(x.shape(2), isa) == x.shape(2), "no kernel accepts panels of this width");
  require(!bias || bias->size() == out_, "bias must have `out` values");
  const LinearPanels panels{x.data(),
                            x.shape(0),
                            in_,
                            x.shape(2),
                            bias ? bias->data() : nullptr,
                            activation_of(activation),
                            y.mutable_data()};
  const Capabilities caps = capabilities_or_active(isa);
  py::gil_scoped_release release;
  se::linear_on_panels(view_, panels, caps);
}

void Weight::conv1d(const py::array_t<float>& x, py::array_t<float> y, int64_t kernel,
                    int64_t stride, int64_t dilation, int64_t left,
                    const std::optional<py::array_t<float>>& bias, int activation,
                    const std::optional<std::string>& isa) const {
  constexpr int64_t limit = int64_t{1} << 31;  // keeps positions from overflowing
  require(std::holds_alternative<Runs>(view_) || std::holds_alternative<Strips>(view_),
          "only runs and strips have kernels for conv1d");
  require(kernel >= 1 && kernel < limit && stride >= 1 && stride < limit && dilation >= 1 &&
              dilation < limit && left >= 0 && left < limit,
          "kernel, stride and dilation must be at least 1, left at least 0, all below 2^31");
  require(x.ndim() == 3 && y.ndim() == 3 && x.shape(0) == y.shape(0) &&
              x.shape(1) * kernel == in_ && y.shape(1) == out_,
          "x must be [batch, in / kernel, length] and y [batch, out, steps]");
  require(x.shape(2) < limit && y.shape(2) < limit, "sequences must be shorter than 2^31");
  require(!bias || (bias->size() == out_ && contiguous(*bias)), "bias must be [out]");
  const Conv1d conv{x.data(),
                    x.shape(0),
                    x.shape(1),
                    x.shape(2),
                    stride_of(x, 0, "x"),
                    stride_of(x, 1, "x"),
                    kernel,
                    stride,
                    dilation,
                    left,
                    y.mutable_data(),
                    y.shape(2),
                    stride_of(y, 0, "y"),
                    stride_of(y, 1, "y"),
                    bias ? bias->data() : nullptr,
                    activation_of(activation)};
  const Capabilities caps = capabilities_or_active(isa);
  py::gil_scoped_release release;
  se::conv1d(view_, conv, caps);
}

void bind_linear(py::module_& m) {
  py::class_<Weight>(m, "Weight",
                     "A packed weight (csrc/layouts). It keeps the arrays alive that it views.")
      .def(py::init<const std::string&, std::vector<py::array>, const std::vector<int64_t>&,
                    int64_t, int64_t>(),
           py::arg("packing"), py::arg("buffers"), py::arg("params"), py::arg("out"),
           py::arg("in_features"))
      .def("linear", &Weight::linear, py::arg("x").noconvert(), py::arg("y").noconvert(),
           py::arg("bias") = py::none(), py::arg("residual") = py::none(),
           py::arg("activation") = 0, py::arg("isa") = py::none(),
           "y = act(x W^T + bias) + residual.")
      .def(
          "panel_width", &Weight::panel_width, py::arg("tokens"), py::arg("isa") = py::none(),
          "Width of the panels for a number of tokens; 0 if the packing has no kernels for panels.")
      .def("linear_on_panels", &Weight::linear_on_panels, py::arg("x").noconvert(),
           py::arg("y").noconvert(), py::arg("bias") = py::none(), py::arg("activation") = 0,
           py::arg("isa") = py::none(),
           "y = act(x W^T + bias) on [panels, features, width] float32, as the native layers hold\n"
           "activations.")
      .def("conv1d", &Weight::conv1d, py::arg("x").noconvert(), py::arg("y").noconvert(),
           py::arg("kernel"), py::arg("stride"), py::arg("dilation"), py::arg("left"),
           py::arg("bias") = py::none(), py::arg("activation") = 0, py::arg("isa") = py::none(),
           "y = act(W * x + bias) over time, x [batch, channels, length], W [out, channels x "
           "kernel], with zeros for what is outside of x.");
  m.def("linear_kernel", &linear_kernel_py, py::arg("packing"), py::arg("dtype"), py::arg("tokens"),
        py::arg("isa") = py::none(),
        "Name of the kernel that runs a packing; `isa` may name what this machine lacks.");
  m.def("kernels", &kernels,
        "Every kernel in the tables: name, op, packing, dtype, isa (the compile target), needs\n"
        "(capabilities), supported (whether this machine has them).");
}

}  // namespace se
