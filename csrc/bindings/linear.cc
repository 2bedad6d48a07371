#include <algorithm>

#include "bindings/arrays.h"
#include "kernels/spmm_runs/kernel.h"
#include "kernels/spmm_strips/kernel.h"
#include "kernels/spmv_strips/kernel.h"
#include "kernels/table.h"
#include "ops/linear.h"

namespace se {
namespace {

// The views check sizes and the pointers' ends; that pointers rise and columns are in range is
// checked once, when a packing is built or loaded (validate in sparse_engine/packings), not at every
// call.
Strips strips_view(const py::array& values, const py::array_t<uint16_t>& columns,
                   const py::array_t<int32_t>& pointers, int64_t out, int64_t in, int64_t height,
                   int64_t block) {
  require(out >= 0 && in >= 0 && height > 0 && block > 0 && block <= 65536,
          "strips: sizes out of range");
  Strips w{};
  w.out = out;
  w.in = in;
  w.height = height;
  w.block = block;
  w.strips = (out + height - 1) / height;
  w.blocks = std::max<int64_t>(1, (in + block - 1) / block);
  w.dtype = dtype_of(values, "values");
  require(pointers.ndim() == 1 && pointers.size() == w.blocks * w.strips + 1,
          "strips: pointers must have blocks * strips + 1 elements");
  require(contiguous(pointers) && contiguous(columns) && contiguous(values),
          "strips: buffers must be contiguous");
  w.values = values.data();
  w.columns = columns.data();
  w.pointers = pointers.data();
  require(w.pointers[0] == 0 && w.pointers[w.blocks * w.strips] == columns.size(),
          "strips: pointers must run from 0 to the number of columns");
  require(values.size() == columns.size() * height, "strips: values must be columns x height");
  return w;
}

Runs runs_view(const py::array& values, const py::array_t<uint8_t>& columns,
               const py::array_t<uint16_t>& rows, const py::array_t<uint16_t>& stretches,
               const py::array_t<int32_t>& starts,
               const std::optional<py::array_t<int32_t>>& corrections, int64_t out, int64_t in,
               int64_t chunk, int64_t block) {
  require(out >= 0 && in >= 0 && chunk > 0 && chunk <= 65535 && block > 0 && block <= 256,
          "runs: sizes out of range");
  const bool quads = py::isinstance<py::array_t<int8_t>>(values);
  Runs w{};
  w.out = out;
  w.in = quads ? (in + 3) / 4 : in;
  w.chunk = chunk;
  w.block = block;
  w.chunks = (out + chunk - 1) / chunk;
  w.blocks = std::max<int64_t>(1, (w.in + block - 1) / block);
  w.dtype = quads ? DType::i8 : dtype_of(values, "values");
  require(contiguous(values) && contiguous(columns) && contiguous(rows) && contiguous(stretches) &&
              contiguous(starts),
          "runs: buffers must be contiguous");
  require(stretches.ndim() == 2 && stretches.shape(1) == 4, "runs: stretches must be [., 4]");
  require(starts.ndim() == 2 && starts.shape(0) == w.chunks * w.blocks + 1 && starts.shape(1) == 4,
          "runs: starts must be [chunks * blocks + 1, 4]");
  w.values = values.data();
  w.columns = columns.data();
  w.rows = rows.data();
  w.stretches = reinterpret_cast<const Stretch*>(stretches.data());
  w.starts = reinterpret_cast<const RunsStart*>(starts.data());
  const RunsStart& end = w.starts[w.chunks * w.blocks];
  require(end.stretch == stretches.shape(0) && end.row + 2 == rows.size() &&
              end.column == columns.size() && end.value * (quads ? 4 : 1) == values.size(),
          "runs: starts must end where the buffers do");
  if (quads) {
    require(corrections && corrections->size() == w.chunks * chunk + 1 && contiguous(*corrections),
            "runs: int8 needs corrections [chunks * chunk + 1]");
    w.corrections = corrections->data();
  }
  return w;
}

void linear_strips(const py::array& x, const py::array& values,
                   const py::array_t<uint16_t>& columns, const py::array_t<int32_t>& pointers,
                   py::array y, const std::optional<py::array_t<float>>& bias,
                   const std::optional<py::array>& residual, int64_t height, int64_t block,
                   int activation, const std::optional<std::string>& isa) {
  require(x.ndim() == 2 && y.ndim() == 2 && x.shape(0) == y.shape(0),
          "x and y must be [tokens, .]");
  const Strips w = strips_view(values, columns, pointers, y.shape(1), x.shape(1), height, block);
  const Epilogue e = epilogue_of(y, bias, residual, activation);
  const DType x_dtype = dtype_of(x, "x");
  const int64_t stride = row_stride(x, "x"), tokens = x.shape(0);
  const void* x_data = x.data();
  const Isa level = isa_or_active(isa);
  py::gil_scoped_release release;
  linear(w, x_data, x_dtype, stride, tokens, e, level);
}

void linear_runs(const py::array& x, const py::array& values, const py::array_t<uint8_t>& columns,
                 const py::array_t<uint16_t>& rows, const py::array_t<uint16_t>& stretches,
                 const py::array_t<int32_t>& starts,
                 const std::optional<py::array_t<float>>& scales,
                 const std::optional<py::array_t<int32_t>>& corrections, py::array y,
                 const std::optional<py::array_t<float>>& bias,
                 const std::optional<py::array>& residual, int64_t chunk, int64_t block,
                 int activation, const std::optional<std::string>& isa) {
  require(x.ndim() == 2 && y.ndim() == 2 && x.shape(0) == y.shape(0),
          "x and y must be [tokens, .]");
  const Runs w = runs_view(values, columns, rows, stretches, starts, corrections, y.shape(1),
                           x.shape(1), chunk, block);
  Epilogue e = epilogue_of(y, bias, residual, activation);
  if (w.dtype == DType::i8) {
    require(scales && scales->size() == w.out && contiguous(*scales),
            "runs: int8 needs scales [out]");
    e.row_scales = scales->data();
  }
  const DType x_dtype = dtype_of(x, "x");
  const int64_t stride = row_stride(x, "x"), tokens = x.shape(0), features = x.shape(1);
  const void* x_data = x.data();
  const Isa level = isa_or_active(isa);
  py::gil_scoped_release release;
  linear(w, x_data, x_dtype, stride, tokens, features, e, level);
}

py::list kernels() {
  std::vector<KernelInfo> rows;
  list_spmm_runs(rows);
  list_spmm_strips(rows);
  list_spmv_strips(rows);
  py::list out;
  for (const KernelInfo& k : rows) {
    py::dict row;
    row["name"] = k.name;
    row["op"] = k.op;
    row["packing"] = k.packing;
    row["dtype"] = dtype_name(k.weight);
    row["isa"] = isa_name(k.isa);
    row["supported"] = k.isa <= detected_isa();
    out.append(row);
  }
  return out;
}

std::string linear_kernel(const std::string& packing, const std::string& dtype, int64_t tokens,
                          const std::optional<std::string>& isa) {
  const DType weight = parse_dtype(dtype);
  const Isa level = isa_or_active(isa);
  if (packing == "runs") return spmm_runs(weight, level).name;
  require(packing == "strips" && weight != DType::i8, "no kernels for this packing and dtype");
  return tokens == 1 ? spmv_strips(weight, level).name : spmm_strips(weight, level).name;
}

}  // namespace

void bind_linear(py::module_& m) {
  m.def("linear_strips", &linear_strips, py::arg("x").noconvert(), py::arg("values").noconvert(),
        py::arg("columns").noconvert(), py::arg("pointers").noconvert(), py::arg("y").noconvert(),
        py::arg("bias") = py::none(), py::arg("residual") = py::none(), py::arg("height"),
        py::arg("block"), py::arg("activation"), py::arg("isa") = py::none(),
        "y = act(x W^T + bias) + residual; W as strips (csrc/layouts/strips.h).");
  m.def("linear_runs", &linear_runs, py::arg("x").noconvert(), py::arg("values").noconvert(),
        py::arg("columns").noconvert(), py::arg("rows").noconvert(),
        py::arg("stretches").noconvert(), py::arg("starts").noconvert(),
        py::arg("scales") = py::none(), py::arg("corrections") = py::none(),
        py::arg("y").noconvert(), py::arg("bias") = py::none(), py::arg("residual") = py::none(),
        py::arg("chunk"), py::arg("block"), py::arg("activation"), py::arg("isa") = py::none(),
        "y = act(x W^T + bias) + residual; W as runs (csrc/layouts/runs.h).");
  m.def("linear_kernel", &linear_kernel, py::arg("packing"), py::arg("dtype"), py::arg("tokens"),
        py::arg("isa") = py::none(), "Name of the kernel that runs a packing.");
  m.def("kernels", &kernels,
        "Every kernel in the tables: name, op, packing, dtype, isa, supported.");
}

}  // namespace se
