#include <cstring>

#include "bindings/arrays.h"
#include "packers/runs.h"
#include "packers/sellp.h"

namespace se {
namespace {

// Rows of a buffer of PODs as a 2-D array of their members.
template <class Member, class Struct>
py::array_t<Member> members_of(const std::vector<Struct>& v) {
  constexpr py::ssize_t kMembers = sizeof(Struct) / sizeof(Member);
  py::array_t<Member> a({static_cast<py::ssize_t>(v.size()), kMembers});
  if (!v.empty()) std::memcpy(a.mutable_data(), v.data(), v.size() * sizeof(Struct));
  return a;
}

// Checks that the CSR buffers fit each other.
CsrView csr_view(const py::array_t<int32_t>& pointers, const py::array_t<int32_t>& columns,
                 const py::array& values, int64_t out, int64_t in) {
  require(out >= 0 && in >= 0 && contiguous(pointers) && contiguous(columns) &&
              contiguous(values) && pointers.size() == out + 1 && columns.size() == values.size(),
          "CSR buffers do not fit each other");
  const CsrView view{out, in, pointers.data(), columns.data(), values.data(), values.itemsize()};
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

py::dict pack_sellp_py(const py::array_t<int32_t>& pointers, const py::array_t<int32_t>& columns,
                       const py::array& values, int64_t out, int64_t in) {
  require(in <= 65536, "sellp takes at most 65536 inputs");
  const CsrView view = csr_view(pointers, columns, values, out, in);
  SellPBuffers buffers;
  {
    py::gil_scoped_release release;
    buffers = pack_sellp(view);
  }
  py::dict d;
  d["values"] = array_of(buffers.values);
  d["picks"] = array_of(buffers.picks);
  d["offsets"] = array_of(buffers.offsets);
  d["starts"] = array_of(buffers.starts);
  d["rows"] = array_of(buffers.rows);
  return d;
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

}  // namespace

void bind_packers(py::module_& m) {
  m.def("pack_runs", &pack_runs_py, py::arg("pointers").noconvert(), py::arg("columns").noconvert(),
        py::arg("values").noconvert(), py::arg("out"), py::arg("in_features"), py::arg("chunk"),
        py::arg("block"),
        "The buffers of csrc/layouts/runs.h from CSR; values come back as bytes.");
  m.def("pack_sellp", &pack_sellp_py, py::arg("pointers").noconvert(),
        py::arg("columns").noconvert(), py::arg("values").noconvert(), py::arg("out"),
        py::arg("in_features"),
        "The buffers of csrc/layouts/sellp.h from CSR; values come back as bytes.");
}

}  // namespace se
