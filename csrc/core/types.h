// Small enums that common code, per-target code and Python share: declarations only.
#pragma once

namespace se {

// SE_DTYPE(enumerator, its name in torch and in Python).
#define SE_DTYPES            \
  SE_DTYPE(f32, "float32")   \
  SE_DTYPE(bf16, "bfloat16") \
  SE_DTYPE(i8, "int8")

enum class DType : int {
#define SE_DTYPE(enumerator, name) enumerator,
  SE_DTYPES
#undef SE_DTYPE
};

// What the lanes of a panel hold: kernels/panel_io/kernel.h.
enum class Panel : int { floats, bf16, halves, quads, bytes };

// SE_ACTIVATION(enumerator); Python uses the same names.
#define SE_ACTIVATIONS     \
  SE_ACTIVATION(none)      \
  SE_ACTIVATION(relu)      \
  SE_ACTIVATION(gelu)      \
  SE_ACTIVATION(gelu_tanh) \
  SE_ACTIVATION(silu)

enum class Activation : int {
#define SE_ACTIVATION(enumerator) enumerator,
  SE_ACTIVATIONS
#undef SE_ACTIVATION
};

}  // namespace se
