#define SE_TARGET scalar
#include "simd/scalar.h"
#include "kernels/spmv_bits/kernel.h"
#include "kernels/prefetch.inl.h"
#include "kernels/prepare.inl.h"
#include "kernels/spmv_bits/body.inl.h"

namespace se {
namespace scalar {

inline float number(float a) { return a; }
inline float number(bf16 a) { return widen(a); }
inline int32_t number(int8_t a) { return a; }
inline float number_of_x(float x) { return x; }
inline int32_t number_of_x(uint8_t x) { return x - 128; }

// Eight columns, one set bit at a time.
template <class V, class X, class Sum>
struct Each {
  using value = V;
  using Mask = uint8_t;
  using acc = Sum;
  struct expanded {
    Mask bits;
    const V* p;
  };
  static constexpr int kColumns = 8, kBytes = 8 * sizeof(X);
  static Sum start() { return 0; }
  static expanded expand(Mask bits, const V* p) { return {bits, p}; }
  static void multiply_add(expanded e, const char* x, Sum& acc) {
    for (int bits = e.bits; bits; bits &= bits - 1)
      acc += number(*e.p++) * number_of_x(reinterpret_cast<const X*>(x)[__builtin_ctz(bits)]);
  }
  static float sum(Sum a, int32_t) { return static_cast<float>(a); }
};

}  // namespace scalar
}  // namespace se

float se::prepare_bits_f32_scalar(const float* x, int64_t in, void* prepared) {
  return scalar::copy_floats(x, in, prepared);
}
float se::prepare_bits_bf16_scalar(const float* x, int64_t in, void* prepared) {
  return scalar::copy_floats(x, in, prepared);
}
float se::prepare_bits_i8_scalar(const float* x, int64_t in, void* prepared) {
  return scalar::quantize_bytes(x, in, prepared);
}

void se::spmv_bits_f32_scalar(const Bits& w, int64_t begin, int64_t end, const void* x,
                              int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  using Step = scalar::Each<float, float, float>;
  scalar::spmv_bits<Step>(w, begin, end, x, x_stride, tokens, y, y_stride);
}

void se::spmv_bits_bf16_scalar(const Bits& w, int64_t begin, int64_t end, const void* x,
                               int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  using Step = scalar::Each<scalar::bf16, float, float>;
  scalar::spmv_bits<Step>(w, begin, end, x, x_stride, tokens, y, y_stride);
}

void se::spmv_bits_i8_scalar(const Bits& w, int64_t begin, int64_t end, const void* x,
                             int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  using Step = scalar::Each<int8_t, uint8_t, int32_t>;
  scalar::spmv_bits<Step>(w, begin, end, x, x_stride, tokens, y, y_stride);
}
