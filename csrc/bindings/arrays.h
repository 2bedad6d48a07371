// What the bindings share: checks on numpy arrays, and names.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "core/cpu.h"
#include "kernels/panel_io/kernel.h"
#include "kernels/roof/active.h"

namespace se {

namespace py = pybind11;

// numpy has no bfloat16: its bits travel as uint16.
DType dtype_of(const py::array& a, const char* what);
const char* dtype_name(DType dtype);
DType parse_dtype(const std::string& name);

// The set that the argument `isa` names; without one, the capabilities in use.
Capabilities capabilities_or_active(const std::optional<std::string>& isa);

// Throws std::invalid_argument for a code that _core.ACTIVATIONS does not hold.
Activation activation_of(int code);

// Throws std::invalid_argument.
void require(bool ok, const char* message);

int64_t row_stride(const py::array& a, const char* what);

bool contiguous(const py::array& a);

// Copies a vector into a fresh array.
template <class T>
py::array_t<T> array_of(const std::vector<T>& v) {
  return py::array_t<T>(static_cast<py::ssize_t>(v.size()), v.data());
}

// Where results go, and what is added on the way. Checks shapes against y [tokens, out].
Epilogue epilogue_of(py::array& y, const std::optional<py::array_t<float>>& bias,
                     const std::optional<py::array>& residual, int activation);

void bind_recurrent(py::module_& m);
void bind_stack(py::module_& m);
void bind_linear(py::module_& m);
void bind_packers(py::module_& m);
void bind_machine(py::module_& m);
void bind_watch(py::module_& m);

}  // namespace se
