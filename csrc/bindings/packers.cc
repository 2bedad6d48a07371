#include <algorithm>
#include <cstring>

#include "bindings/arrays.h"
#include "packers/runs.h"
#include "packers/runs_rows.h"
#include "packers/sellp.h"

namespace se {
namespace {

// A buffer of structs as a 2-D array with one row per struct.
template <class Member, class Struct>
py::array_t<Member> members_of(const std::vector<Struct>& v) {
  constexpr py::ssize_t kMembers = sizeof(Struct) / sizeof(Member);
  py::array_t<Member> a({static_cast<py::ssize_t>(v.size()), kMembers});
  if (!v.empty()) std::memcpy(a.mutable_data(), v.data(), v.size() * sizeof(Struct));
  return a;
}

// Checks that the CSR buffers are consistent. without values the view is of a pattern.
CsrView csr_view(const py::array_t<int32_t>& pointers, const py::array_t<int32_t>& columns,
                 const std::optional<py::array>& values, int64_t out, int64_t in) {
  require(out >= 0 && in >= 0 && contiguous(pointers) && contiguous(columns) &&
              pointers.size() == out + 1,
          "CSR buffers do not fit each other");
  require(!values || (contiguous(*values) && columns.size() == values->size()),
          "CSR values do not fit the columns");
  const CsrView view{out,
                     in,
                     pointers.data(),
                     columns.data(),
                     values ? values->data() : nullptr,
                     values ? values->itemsize() : 0};
  int64_t last = 0;
  for (int64_t r = 0; r <= out; ++r) {
    require(view.pointers[r] >= last && view.pointers[r] <= columns.size(),
            "CSR pointers do not rise");
    last = view.pointers[r];
  }
  require(last == columns.size(), "CSR pointers do not end with the columns");
  for (int64_t r = 0; r < out; ++r) {
    int64_t before = -1;
    for (int64_t e = view.pointers[r]; e < view.pointers[r + 1]; before = view.columns[e++])
      require(view.columns[e] > before && view.columns[e] < in,
              "CSR columns must rise within a row and stay in range");
  }
  return view;
}

py::dict sellp_pattern_py(const py::array_t<int32_t>& pointers, const py::array_t<int32_t>& columns,
                          int64_t out, int64_t in) {
  require(in <= 65536, "sellp takes at most 65536 inputs");
  const CsrView view = csr_view(pointers, columns, std::nullopt, out, in);
  SellPBuffers buffers;
  {
    py::gil_scoped_release release;
    buffers = sellp_pattern(view);
  }
  py::dict d;
  d["picks"] = array_of(buffers.picks);
  d["offsets"] = array_of(buffers.offsets);
  d["starts"] = array_of(buffers.starts);
  d["rows"] = array_of(buffers.rows);
  return d;
}

void fill_sellp_py(const py::array_t<int32_t>& pointers, const py::array_t<int32_t>& columns,
                   const py::array& values, int64_t in, int64_t first,
                   const py::array_t<int32_t>& lanes, const py::array_t<uint16_t>& offsets,
                   const py::array_t<int32_t>& starts, py::array to) {
  const int64_t out = pointers.size() - 1, steps = offsets.size();
  const CsrView rows = csr_view(pointers, columns, values, out, in);
  require(contiguous(lanes) && contiguous(offsets) && contiguous(starts) && contiguous(to) &&
              first >= 0 && first + out <= lanes.size() && to.itemsize() == values.itemsize() &&
              to.size() == 16 * steps,
          "sellp: buffers do not fit each other");
  for (int64_t r = first; r < first + out; ++r) {
    const int64_t slice = lanes.data()[r] / 16;
    require(lanes.data()[r] >= 0 && slice + 1 < starts.size() && starts.data()[slice] >= 0 &&
                starts.data()[slice] <= starts.data()[slice + 1] &&
                starts.data()[slice + 1] <= steps,
            "sellp: lanes or starts are out of range");
  }
  auto* bytes = static_cast<uint8_t*>(to.mutable_data());
  py::gil_scoped_release release;
  fill_sellp(rows, first, lanes.data(), offsets.data(), starts.data(), bytes);
}

py::dict pack_runs_py(const py::array_t<int32_t>& pointers, const py::array_t<int32_t>& columns,
                      const py::array& values, int64_t out, int64_t in, int64_t chunk,
                      int64_t block) {
  require(out >= 0 && in >= 0 && chunk > 0 && chunk <= 65535 && block > 0 && block <= 256,
          "runs: sizes out of range");
  require(values.itemsize() == 2 || values.itemsize() == 4, "runs: values of 2 or 4 bytes");
  const CsrView view = csr_view(pointers, columns, values, out, in);
  RunsBuffers buffers;
  {
    py::gil_scoped_release release;
    buffers = pack_runs(view, chunk, block);
  }
  py::dict d;
  d["values"] = array_of(buffers.values);
  d["columns"] = array_of(buffers.columns);
  d["rows"] = array_of(buffers.rows);
  d["stretches"] = members_of<uint16_t>(buffers.stretches);
  d["starts"] = members_of<int32_t>(buffers.starts);
  return d;
}

// Buffers as Runs has them, values as numbers of 2 or 4 bytes; `in` counts quads for int8.
py::tuple rows_of_runs_py(const py::array& values, const py::array_t<uint8_t>& columns,
                          const py::array_t<uint16_t>& rows, const py::array_t<uint16_t>& stretches,
                          const py::array_t<int32_t>& starts, int64_t out, int64_t in,
                          int64_t chunk, int64_t block, int64_t begin, int64_t end) {
  require(out >= 0 && in >= 0 && chunk > 0 && chunk <= 65535 && block > 0 && block <= 256 &&
              begin >= 0 && begin <= end && end <= out,
          "runs: sizes out of range");
  Runs w{};
  w.out = out;
  w.in = in;
  w.chunk = chunk;
  w.k_block = block;
  w.chunks = (out + chunk - 1) / chunk;
  w.k_blocks = std::max<int64_t>(1, (in + block - 1) / block);
  require(contiguous(values) && (values.itemsize() == 2 || values.itemsize() == 4) &&
              contiguous(columns) && contiguous(rows) && contiguous(stretches) &&
              contiguous(starts) && stretches.size() % 4 == 0 &&
              starts.size() == 4 * (w.chunks * w.k_blocks + 1),
          "runs: buffers do not fit each other");
  w.values = values.data();
  w.columns = columns.data();
  w.rows = rows.data();
  w.stretches = reinterpret_cast<const Stretch*>(stretches.data());
  w.starts = reinterpret_cast<const RunsStart*>(starts.data());
  const RunsStart sizes{static_cast<int32_t>(stretches.size() / 4),
                        static_cast<int32_t>(rows.size()), static_cast<int32_t>(columns.size()),
                        static_cast<int32_t>(values.size())};
  RowsBuffers found;
  {
    py::gil_scoped_release release;
    found = rows_of_runs(w, sizes, values.itemsize(), begin, end);
  }
  return py::make_tuple(array_of(found.pointers), array_of(found.columns), array_of(found.values));
}

}  // namespace

void bind_packers(py::module_& m) {
  m.def("pack_runs", &pack_runs_py, py::arg("pointers").noconvert(), py::arg("columns").noconvert(),
        py::arg("values").noconvert(), py::arg("out"), py::arg("in_features"), py::arg("chunk"),
        py::arg("block"),
        "The buffers of csrc/layouts/runs.h from CSR; values come back as bytes.");
  m.def("rows_of_runs", &rows_of_runs_py, py::arg("values").noconvert(),
        py::arg("columns").noconvert(), py::arg("rows").noconvert(),
        py::arg("stretches").noconvert(), py::arg("starts").noconvert(), py::arg("out"),
        py::arg("in_features"), py::arg("chunk"), py::arg("block"), py::arg("begin"),
        py::arg("end"),
        "Pointers, columns and values (bytes) of some rows; damaged buffers are a ValueError.");
  m.def("sellp_pattern", &sellp_pattern_py, py::arg("pointers").noconvert(),
        py::arg("columns").noconvert(), py::arg("out"), py::arg("in_features"),
        "The buffers of csrc/layouts/sellp.h, but for the values, from the pattern of a CSR.");
  m.def("fill_sellp", &fill_sellp_py, py::arg("pointers").noconvert(),
        py::arg("columns").noconvert(), py::arg("values").noconvert(), py::arg("in_features"),
        py::arg("first"), py::arg("lanes").noconvert(), py::arg("offsets").noconvert(),
        py::arg("starts").noconvert(), py::arg("to").noconvert(),
        "Write the values of some rows into those of csrc/layouts/sellp.h.");
}

}  // namespace se
