#include "bindings/arrays.h"

#include <stdexcept>

namespace se {

const char* dtype_name(DType dtype) {
  constexpr const char* kNames[] = {
#define SE_DTYPE(enumerator, name) name,
      SE_DTYPES
#undef SE_DTYPE
  };
  return kNames[static_cast<int>(dtype)];
}

DType dtype_of(const py::array& a, const char* what) {
  if (py::isinstance<py::array_t<float>>(a)) return DType::f32;
  if (py::isinstance<py::array_t<uint16_t>>(a)) return DType::bf16;
  throw std::invalid_argument(std::string(what) +
                              " must be float32, or uint16 holding bfloat16 bits");
}

DType parse_dtype(const std::string& name) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::i8})
    if (name == dtype_name(dtype)) return dtype;
  throw std::invalid_argument("dtype must be float32, bfloat16 or int8, got " + name);
}

Capabilities capabilities_or_active(const std::optional<std::string>& isa) {
  return isa ? detected_subset(*isa) : active_capabilities();
}

Activation activation_of(int code) {
  constexpr int kCount = 0
#define SE_ACTIVATION(name) +1
      SE_ACTIVATIONS
#undef SE_ACTIVATION
      ;
  require(code >= 0 && code < kCount, "unknown activation");
  return static_cast<Activation>(code);
}

void require(bool ok, const char* message) {
  if (!ok) throw std::invalid_argument(message);
}

int64_t row_stride(const py::array& a, const char* what) {
  if (a.ndim() == 2 && a.size() == 0) return a.shape(1);  // numpy leaves these strides undefined
  if (a.ndim() != 2 || (a.shape(1) > 1 && a.strides(1) != a.itemsize()) || a.strides(0) < 0)
    throw std::invalid_argument(std::string(what) + " must be 2-D with contiguous rows");
  return a.shape(0) > 1 ? a.strides(0) / a.itemsize() : a.shape(1);
}

bool contiguous(const py::array& a) { return a.flags() & py::array::c_style; }

Epilogue epilogue_of(py::array& y, const std::optional<py::array_t<float>>& bias,
                     const std::optional<py::array>& residual, int activation) {
  require(y.ndim() == 2, "y must be [tokens, out]");
  Epilogue e{};
  e.activation = activation_of(activation);
  e.dtype = dtype_of(y, "y");
  e.y = y.mutable_data();
  e.y_stride = row_stride(y, "y");
  if (bias) {
    require(bias->size() == y.shape(1) && contiguous(*bias), "bias must be [out]");
    e.bias = bias->data();
  }
  if (residual) {
    require(residual->ndim() == 2 && residual->shape(0) == y.shape(0) &&
                residual->shape(1) == y.shape(1) && dtype_of(*residual, "residual") == e.dtype,
            "residual must have the shape and dtype of y");
    e.residual = residual->data();
    e.residual_stride = row_stride(*residual, "residual");
  }
  return e;
}

}  // namespace se
