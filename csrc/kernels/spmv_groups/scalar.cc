#define SE_TARGET scalar
#include "simd/scalar.h"
#include "kernels/spmv_groups/kernel.h"
#include "kernels/prefetch.inl.h"
#include "kernels/spmv_groups/body.inl.h"

namespace se {
namespace scalar {

struct Memory {
  struct Places {
    int64_t column[16];
  };
  const Groups& m;

  explicit Memory(const Groups& groups) : m(groups) {}
  static float sum(vf a) { return (a.lane[0] + a.lane[1]) + (a.lane[2] + a.lane[3]); }
  Places where(const uint8_t* p) const {
    Places places;
    for (int64_t i = 0; i < 16; ++i) {
      const int64_t bit = i * m.bits;
      const int64_t two = p[bit / 8] | p[bit / 8 + 1] << 8;
      places.column[i] = i / m.keep * m.of + (two >> (bit % 8) & (m.of - 1));
    }
    return places;
  }
  vf select(const float* x, const Places& where, int p) const {
    return each([&](int i) { return x[where.column[p * kLanes + i]]; });
  }
};

template <class W>
inline void run(const Groups& w, int64_t begin, int64_t end, const float* x, int64_t x_stride,
                int64_t tokens, float* y, int64_t y_stride) {
  spmv_groups<W, Memory>(w, begin, end, x, x_stride, tokens, y, y_stride);
}

}  // namespace scalar
}  // namespace se

void se::spmv_groups_f32_scalar(const Groups& w, int64_t begin, int64_t end, const float* x,
                                int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  scalar::run<float>(w, begin, end, x, x_stride, tokens, y, y_stride);
}
void se::spmv_groups_bf16_scalar(const Groups& w, int64_t begin, int64_t end, const float* x,
                                 int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  scalar::run<scalar::bf16>(w, begin, end, x, x_stride, tokens, y, y_stride);
}
void se::spmv_groups_i8_scalar(const Groups& w, int64_t begin, int64_t end, const float* x,
                               int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  scalar::run<int8_t>(w, begin, end, x, x_stride, tokens, y, y_stride);
}
