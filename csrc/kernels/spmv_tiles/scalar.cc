#define SE_TARGET scalar
#include "simd/scalar.h"
#include "kernels/spmv_tiles/kernel.h"
#include "kernels/prefetch.inl.h"
#include "kernels/prepare.inl.h"
#include "kernels/spmv_tiles/body.inl.h"

namespace se {
namespace scalar {

inline float number(float a) { return a; }
inline float number(bf16 a) { return widen(a); }
inline int32_t number(int8_t a) { return a; }
inline float number_of_x(float x) { return x; }
inline int32_t number_of_x(uint8_t x) { return x - 128; }

template <class V, class M, class XValue, class Number, int kAtOnce>
struct Each {
  using Mask = M;
  using Value = V;
  using X = XValue;
  struct Expanded {
    Number at[16 * kAtOnce];
  };
  struct Sum {
    Number of[16];
  };
  static constexpr int kTogether = kAtOnce;
  static Sum start() { return {}; }
  static Expanded expand(Mask mask, const V* p) {
    Expanded w;
    for (int i = 0; i < 16 * kAtOnce; ++i) w.at[i] = mask >> i & 1 ? number(*p++) : Number{0};
    return w;
  }
  static void multiply_add(const Expanded& w, const X* x, Sum& sum) {
    for (int r = 0; r < 16; ++r)
      for (int k = 0; k < kAtOnce; ++k) sum.of[r] += w.at[r * kAtOnce + k] * number_of_x(x[k]);
  }
  static void store(float* y, const Sum& sum, const int32_t*) {
    for (int r = 0; r < 16; ++r) y[r] = static_cast<float>(sum.of[r]);
  }
};

}  // namespace scalar
}  // namespace se

float se::prepare_tiles_f32_scalar(const float* x, int64_t in, void* prepared) {
  return scalar::copy_floats(x, in, prepared);
}
float se::prepare_tiles_bf16_scalar(const float* x, int64_t in, void* prepared) {
  return scalar::copy_floats(x, in, prepared);
}
float se::prepare_tiles_i8_scalar(const float* x, int64_t in, void* prepared) {
  return scalar::quantize_bytes(x, in, prepared);
}

void se::spmv_tiles_f32_scalar(const Tiles& w, int64_t begin, int64_t end, const void* x,
                               int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  using Line = scalar::Each<float, uint32_t, float, float, 2>;
  scalar::spmv_tiles<Line>(w, begin, end, x, x_stride, tokens, y, y_stride);
}

void se::spmv_tiles_bf16_scalar(const Tiles& w, int64_t begin, int64_t end, const void* x,
                                int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  using Line = scalar::Each<scalar::bf16, uint32_t, float, float, 2>;
  scalar::spmv_tiles<Line>(w, begin, end, x, x_stride, tokens, y, y_stride);
}

void se::spmv_tiles_i8_scalar(const Tiles& w, int64_t begin, int64_t end, const void* x,
                              int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  using Line = scalar::Each<int8_t, uint64_t, uint8_t, int32_t, 4>;
  scalar::spmv_tiles<Line>(w, begin, end, x, x_stride, tokens, y, y_stride);
}
