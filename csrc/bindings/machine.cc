#include "bindings/arrays.h"
#include "kernels/roof/roof.h"

namespace se {

void bind_machine(py::module_& m) {
  // Whoever sets the variable gets the library's own error of one line, whatever was called.
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const ForcedIsaError& error) {
      const py::object kind = py::module_::import("sparse_engine.errors").attr("UsageError");
      PyErr_SetString(kind.ptr(), error.what());
    }
  });
  m.def("detected_isa", [] { return isa_name(detected_isa()); }, "Highest ISA of this machine.");
  m.def(
      "active_isa", [] { return isa_name(active_isa()); },
      "ISA in use: SPARSE_ENGINE_ISA forces one; avx512_bf16 only where its products pay.");
  m.def("cpu_name", &cpu_name);
  m.def(
      "peak_gflops",
      [](const std::string& dtype, const std::optional<std::string>& isa) {
        const DType type = parse_dtype(dtype);
        const Isa level = isa_or_active(isa);
        py::gil_scoped_release release;
        return peak_gflops(type, level);
      },
      py::arg("dtype"), py::arg("isa") = py::none(), "Measured peak of all threads, GFLOP/s.");
  m.def(
      "read_gbytes_per_second",
      [](int64_t bytes, const std::optional<std::string>& isa) {
        require(bytes > 0 && bytes <= (int64_t{1} << 32), "bytes must be between 1 and 2^32");
        const Isa level = isa_or_active(isa);
        py::gil_scoped_release release;
        return read_gbytes_per_second(bytes, level);
      },
      py::arg("bytes"), py::arg("isa") = py::none(),
      "Measured read bandwidth of all threads, GB/s.");
}

}  // namespace se
