#include "bindings/arrays.h"
#include "kernels/roof/roof.h"

namespace se {

void bind_machine(py::module_& m) {
  // A wrong SPARSE_ENGINE_ISA raises UsageError, whichever function reads the variable.
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const ForcedIsaError& error) {
      const py::object kind = py::module_::import("sparse_engine.errors").attr("UsageError");
      PyErr_SetString(kind.ptr(), error.what());
    }
  });
  py::dict activations;
  int code = 0;
#define SE_ACTIVATION(name) activations[#name] = code++;
  SE_ACTIVATIONS
#undef SE_ACTIVATION
  m.attr("ACTIVATIONS") = activations;
  py::list dtypes;
#define SE_DTYPE(enumerator, name) dtypes.append(name);
  SE_DTYPES
#undef SE_DTYPE
  m.attr("DTYPES") = py::tuple(dtypes);
  m.def(
      "detected_isa", [] { return capabilities_text(detected_capabilities()); },
      "The capabilities of this machine as a text that `isa` and SPARSE_ENGINE_ISA accept.");
  m.def(
      "active_isa", [] { return capabilities_text(active_capabilities()); },
      "The capabilities in use, as such a text: what SPARSE_ENGINE_ISA names, or else those of\n"
      "this machine, without bf16 where its products are slower than those of floats.");
  m.def(
      "capabilities",
      [](const std::optional<std::string>& isa) {
        return capability_names(capabilities_or_active(isa));
      },
      py::arg("isa") = py::none(),
      "Names of the capabilities in a set: avx2, avx512, vnni, vbmi2, bf16, fp16, amx, amx_int8,\n"
      "amx_bf16, amx_fp16. Without `isa`, those in use.");
  m.def(
      "presets",
      [] {
        std::vector<std::string> names;
        for (const Preset& preset : presets())
          if (detected_capabilities().covers(preset.capabilities)) names.push_back(preset.name);
        return names;
      },
      "The presets that this machine supports, from small to large.");
  m.def("cpu_name", &cpu_name);
  m.def("tiles_refused", &tiles_refused,
        "Whether the processor has AMX and the operating system does not let this process use it.");
  m.def(
      "peak_gflops",
      [](const std::string& dtype, const std::optional<std::string>& isa) {
        const DType type = parse_dtype(dtype);
        const Capabilities caps = capabilities_or_active(isa);
        py::gil_scoped_release release;
        return peak_gflops(type, caps);
      },
      py::arg("dtype"), py::arg("isa") = py::none(), "Measured peak of all threads, GFLOP/s.");
  m.def(
      "read_gbytes_per_second",
      [](int64_t bytes, const std::optional<std::string>& isa) {
        require(bytes > 0 && bytes <= (int64_t{1} << 32), "bytes must be between 1 and 2^32");
        const Capabilities caps = capabilities_or_active(isa);
        py::gil_scoped_release release;
        return read_gbytes_per_second(bytes, caps);
      },
      py::arg("bytes"), py::arg("isa") = py::none(),
      "Measured read bandwidth of all threads, GB/s.");
}

}  // namespace se
