// Shared by the bindings: checks on numpy arrays, and names of enums.
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

// The dtype of a float array. numpy has no bfloat16; arrays of uint16 hold its bits.
DType dtype_of(const py::array& a, const char* what);
const char* dtype_name(DType dtype);
DType parse_dtype(const std::string& name);

// The set that `isa` names, or without `isa` the capabilities in use.
Capabilities capabilities_or_active(const std::optional<std::string>& isa);

// The activation of a code in _core.ACTIVATIONS; throws std::invalid_argument for another code.
Activation activation_of(int code);

// Throws std::invalid_argument with `message` unless `ok`.
void require(bool ok, const char* message);

// Elements from one row to the next; throws std::invalid_argument unless `a` is 2-D with contiguous
// rows.
int64_t row_stride(const py::array& a, const char* what);

bool contiguous(const py::array& a);

// A new array with the elements of a vector.
template <class T>
py::array_t<T> array_of(const std::vector<T>& v) {
  return py::array_t<T>(static_cast<py::ssize_t>(v.size()), v.data());
}

// The epilogue that writes y [tokens, out]. Checks the shapes of bias and residual against y.
Epilogue epilogue_of(py::array& y, const std::optional<py::array_t<float>>& bias,
                     const std::optional<py::array>& residual, int activation);

void bind_recurrent(py::module_& m);
void bind_stack(py::module_& m);
void bind_linear(py::module_& m);
void bind_packers(py::module_& m);
void bind_machine(py::module_& m);
void bind_watch(py::module_& m);

}  // namespace se
