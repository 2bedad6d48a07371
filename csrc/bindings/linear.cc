#include <algorithm>

#include "bindings/weight.h"
#include "kernels/table.h"
#include "ops/conv1d.h"

namespace se {
namespace {

// Reads the buffers of a packing in the order of buffer_names in sparse_engine/packings/cpu. Checks
// dtypes, sizes and the last pointers only. That pointers rise and that columns are in range is
// validated once, when a packing is built or loaded.
class Buffers {
 public:
  explicit Buffers(const std::vector<py::array>& arrays) : arrays_(arrays) {}

  template <class T>
  const T* read(int64_t size, const char* what) {
    const py::array& a = next();
    if (!py::isinstance<py::array_t<T>>(a) || a.size() != size || !contiguous(a))
      throw std::invalid_argument(std::string(what) + ": wrong dtype, size or layout");
    return static_cast<const T*>(a.data());
  }
  template <class T>
  const T* read_any(int64_t* size, const char* what) {
    *size = peek().size();
    return read<T>(*size, what);
  }
  // Values of float32 or bfloat16.
  const void* read_values(DType* dtype, int64_t* size, const char* what) {
    const py::array& a = next();
    *dtype = dtype_of(a, what);
    *size = a.size();
    require(contiguous(a), "values must be contiguous");
    return a.data();
  }
  const py::array& peek() const {
    require(at_ < arrays_.size(), "a packing lacks buffers");
    return arrays_[at_];
  }
  void end() const { require(at_ == arrays_.size(), "a packing has too many buffers"); }

 private:
  const py::array& next() {
    const py::array& a = peek();
    ++at_;
    return a;
  }
  const std::vector<py::array>& arrays_;
  size_t at_ = 0;
};

Strips strips_view(Buffers buffers, const std::vector<int64_t>& params, int64_t out, int64_t in) {
  require(params.size() == 2, "strips: params are height and block");
  Strips w{};
  w.out = out;
  w.in = in;
  w.height = params[0];
  w.k_block = params[1];
  require(w.height > 0 && w.height <= 4096 && w.k_block > 0 && w.k_block <= 65536,
          "strips: sizes out of range");
  w.strips = (out + w.height - 1) / w.height;
  w.k_blocks = std::max<int64_t>(1, (in + w.k_block - 1) / w.k_block);
  int64_t values = 0, columns = 0;
  w.values = buffers.read_values(&w.dtype, &values, "strips values");
  w.columns = buffers.read_any<uint16_t>(&columns, "strips columns");
  w.pointers = buffers.read<int32_t>(w.k_blocks * w.strips + 1, "strips pointers");
  buffers.end();
  require(w.pointers[0] == 0 && w.pointers[w.k_blocks * w.strips] == columns,
          "strips: pointers must run from 0 to the number of columns");
  require(values == columns * w.height, "strips: values must be columns x height");
  return w;
}

Columns columns_view(Buffers buffers, const std::vector<int64_t>& params, int64_t out, int64_t in) {
  require(params.size() == 1 && (params[0] == 16 || params[0] == 32) && in <= 65536,
          "columns: params are the height, 16 or 32; at most 65536 inputs");
  Columns w{};
  w.out = out;
  w.in = in;
  w.height = params[0];
  w.bands = (out + w.height - 1) / w.height;
  int64_t values = 0, columns = 0;
  w.values = buffers.read_values(&w.dtype, &values, "columns values");
  w.columns = buffers.read_any<uint16_t>(&columns, "columns columns");
  w.pointers = buffers.read<int32_t>(w.bands + 1, "columns pointers");
  buffers.end();
  require(w.dtype == DType::bf16, "columns: values must be bfloat16");
  require(w.pointers[0] == 0 && int64_t{w.pointers[w.bands]} * Columns::kStep == columns &&
              values == columns * w.height,
          "columns: pointers must run from 0 to the number of steps, of 32 columns each");
  return w;
}

Runs runs_view(Buffers buffers, const std::vector<int64_t>& params, int64_t out, int64_t in) {
  require(params.size() == 2, "runs: params are chunk and block");
  const bool quads = py::isinstance<py::array_t<int8_t>>(buffers.peek());
  Runs w{};
  w.out = out;
  w.in = quads ? (in + 3) / 4 : in;
  w.chunk = params[0];
  w.k_block = params[1];
  require(w.chunk > 0 && w.chunk <= 65535 && w.k_block > 0 && w.k_block <= 256,
          "runs: sizes out of range");
  w.chunks = (out + w.chunk - 1) / w.chunk;
  w.k_blocks = std::max<int64_t>(1, (w.in + w.k_block - 1) / w.k_block);
  int64_t values = 0, columns = 0, rows = 0, stretches = 0;
  if (quads) {
    w.dtype = DType::i8;
    w.values = buffers.read_any<int8_t>(&values, "runs values");
    values /= 4;
  } else {
    w.values = buffers.read_values(&w.dtype, &values, "runs values");
  }
  w.columns = buffers.read_any<uint8_t>(&columns, "runs columns");
  w.rows = buffers.read_any<uint16_t>(&rows, "runs rows");
  w.stretches =
      reinterpret_cast<const Stretch*>(buffers.read_any<uint16_t>(&stretches, "runs stretches"));
  w.starts = reinterpret_cast<const RunsStart*>(
      buffers.read<int32_t>(4 * (w.chunks * w.k_blocks + 1), "runs starts"));
  if (quads) {
    w.scales = buffers.read<float>(out, "runs scales");
    w.corrections = buffers.read<int32_t>(w.chunks * w.chunk + 1, "runs corrections");
  }
  buffers.end();
  const RunsStart& end = w.starts[w.chunks * w.k_blocks];
  require(int64_t{4} * end.stretch == stretches && end.row + 2 == rows && end.column == columns &&
              end.value == values,
          "runs: starts must end where the buffers do");
  for (int64_t c = 0; c < w.chunks; ++c) {
    const RunsStart* first = w.starts + c * w.k_blocks;
    const int64_t count = std::min(w.chunk, out - c * w.chunk);
    require(first[1].row - first[0].row == (count + 1) / 2 * 2,
            "runs: every row must be in the first K-block");
  }
  return w;
}

// Values of float32, bfloat16 or int8.
const void* read_any_values(Buffers& buffers, DType* dtype, int64_t* size, const char* what) {
  if (!py::isinstance<py::array_t<int8_t>>(buffers.peek()))
    return buffers.read_values(dtype, size, what);
  *dtype = DType::i8;
  return buffers.read_any<int8_t>(size, what);
}

Groups groups_view(Buffers buffers, const std::vector<int64_t>& params, int64_t out, int64_t in) {
  require(params.size() == 2, "groups: params are keep and of");
  Groups w{};
  w.out = out;
  w.in = in;
  w.keep = params[0];
  w.of = params[1];
  while (int64_t{1} << w.bits < w.of && w.bits < 5) ++w.bits;
  require(w.bits >= 1 && w.bits <= 4 && int64_t{1} << w.bits == w.of &&
              (w.of == 2 * w.keep || w.of == 4 * w.keep),
          "groups: of must be 2, 4, 8 or 16, and 2 or 4 times keep");
  w.steps = (in + w.span() - 1) / w.span();
  int64_t values = 0;
  w.values = read_any_values(buffers, &w.dtype, &values, "groups values");
  w.positions = buffers.read<uint8_t>(out * w.steps * 2 * w.bits + 4, "groups positions");
  if (w.dtype == DType::i8) w.scales = buffers.read<float>(out, "groups scales");
  buffers.end();
  require(values == out * w.steps * 16, "groups: values must be [out, 16 steps]");
  return w;
}

SellP sellp_view(Buffers buffers, const std::vector<int64_t>& params, int64_t out, int64_t in) {
  require(params.empty() && in <= 65536, "sellp: no params, and at most 65536 inputs");
  SellP w{};
  w.out = out;
  w.in = in;
  w.groups = (out + 15) / 16;
  int64_t values = 0, picks = 0, steps = 0;
  w.values = read_any_values(buffers, &w.dtype, &values, "sellp values");
  w.picks = buffers.read_any<uint8_t>(&picks, "sellp picks");
  w.offsets = buffers.read_any<uint16_t>(&steps, "sellp offsets");
  w.starts = buffers.read<int32_t>(w.groups + 1, "sellp starts");
  w.rows = buffers.read<int32_t>(w.groups * 16, "sellp rows");
  if (w.dtype == DType::i8) w.scales = buffers.read<float>(out, "sellp scales");
  buffers.end();
  require(values == 16 * steps && picks == 16 * steps && w.starts[0] == 0 &&
              w.starts[w.groups] == steps,
          "sellp: values and picks must be [steps, 16], starts run from 0 to steps");
  return w;
}

Bits bits_view(Buffers buffers, const std::vector<int64_t>& params, int64_t out, int64_t in) {
  require(params.empty(), "bits: no params");
  Bits w{};
  w.out = out;
  w.in = in;
  w.stride = (in + 63) / 64 * 8;
  int64_t values = 0;
  w.values = read_any_values(buffers, &w.dtype, &values, "bits values");
  w.mask = buffers.read<uint8_t>(out * w.stride, "bits mask");
  w.offsets = buffers.read<int32_t>(out + 1, "bits offsets");
  if (w.dtype == DType::i8) {
    w.scales = buffers.read<float>(out, "bits scales");
    w.corrections = buffers.read<int32_t>(out, "bits corrections");
  }
  buffers.end();
  require(w.offsets[0] == 0 && int64_t{w.offsets[out]} + 64 == values,
          "bits: offsets must run from 0 to 64 before the end of values");
  return w;
}

Tiles tiles_view(Buffers buffers, const std::vector<int64_t>& params, int64_t out, int64_t in) {
  require(params.empty() && in <= int64_t{1} << 20, "tiles: no params, and at most 2^20 inputs");
  Tiles w{};
  w.out = out;
  w.in = in;
  w.bands = (out + Tiles::kBand - 1) / Tiles::kBand;
  int64_t values = 0, masks = 0, entries = 0;
  w.values = read_any_values(buffers, &w.dtype, &values, "tiles values");
  w.masks = w.dtype == DType::i8
                ? static_cast<const void*>(buffers.read_any<uint64_t>(&masks, "tiles masks"))
                : buffers.read_any<uint32_t>(&masks, "tiles masks");
  if (!masks) w.masks = nullptr;
  w.columns = buffers.read_any<uint16_t>(&entries, "tiles columns");
  w.halves = buffers.read<uint8_t>(entries, "tiles halves");
  w.entries = buffers.read<int32_t>(w.bands + 1, "tiles entries");
  w.tiles = buffers.read<int32_t>(w.bands + 1, "tiles tiles");
  w.starts = buffers.read<int32_t>(w.bands + 1, "tiles starts");
  if (w.dtype == DType::i8) {
    w.scales = buffers.read<float>(out, "tiles scales");
    w.corrections = buffers.read<int32_t>(w.bands * Tiles::kBand, "tiles corrections");
  }
  buffers.end();
  const int64_t tiles = w.tiles[w.bands];
  require(w.entries[0] == 0 && w.entries[w.bands] == entries && w.tiles[0] == 0 &&
              w.starts[0] == 0 && int64_t{w.starts[w.bands]} + 64 == values &&
              (masks ? masks == 16 * tiles : values == tiles * w.size() + 64),
          "tiles: pointers must run from 0 to the sizes of the buffers");
  return w;
}

PackedWeight view_of(const std::string& packing, const std::vector<py::array>& buffers,
                     const std::vector<int64_t>& params, int64_t out, int64_t in) {
  require(out >= 0 && in >= 0, "a weight must not have negative sizes");
  const Buffers b(buffers);
  if (packing == Runs::kPacking) return runs_view(b, params, out, in);
  if (packing == Strips::kPacking) return strips_view(b, params, out, in);
  if (packing == SellP::kPacking) return sellp_view(b, params, out, in);
  if (packing == Bits::kPacking) return bits_view(b, params, out, in);
  if (packing == Groups::kPacking) return groups_view(b, params, out, in);
  if (packing == Columns::kPacking) return columns_view(b, params, out, in);
  if (packing == Tiles::kPacking) return tiles_view(b, params, out, in);
  throw std::invalid_argument("unknown packing " + packing);
}

py::list kernels() {
  std::vector<KernelInfo> rows;
  list_spmm_columns(rows);
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
  return linear_kernel(unbacked_weight(packing, parse_dtype(dtype)), tokens, caps);
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
  const bool panels = std::holds_alternative<Runs>(view_) || std::holds_alternative<Strips>(view_);
  return panels ? linear_panel_width(view_, tokens, capabilities_or_active(isa)) : 0;
}

void Weight::linear_on_panels(const py::array_t<float>& x, py::array_t<float> y,
                              const std::optional<py::array_t<float>>& bias, int activation,
                              const std::optional<std::string>& isa) const {
  require(panel_width(1, isa) != 0, "only runs and strips have kernels for panels");
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
  require(panel_width(1, isa) != 0, "only runs and strips have kernels for conv1d");
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
