#define SE_TARGET avx512
#include "simd/avx512.h"
#include "kernels/spmv_groups/kernel.h"
#include "kernels/prefetch.inl.h"
#include "kernels/spmv_groups/body.inl.h"

namespace se {
namespace avx512 {

// The position of lane i begins at bit `bits` * i: two broadcasts of 32 bits hold eight lanes each.
// A span of 32 columns fits two registers, from which one permutation selects; 64 columns need two
// permutations and a blend.
template <int Span>
struct Registers {
  __m512i shift, mask, base;
  int64_t bits;

  explicit Registers(const Groups& m) : bits(m.bits) {
    int32_t shifts[16], bases[16];
    for (int i = 0; i < 16; ++i) {
      shifts[i] = static_cast<int32_t>(i % 8 * m.bits);
      bases[i] = static_cast<int32_t>(i / m.keep * m.of);
    }
    shift = _mm512_loadu_si512(shifts);
    base = _mm512_loadu_si512(bases);
    mask = _mm512_set1_epi32(static_cast<int>(m.of - 1));
  }
  static float sum(vf a) { return _mm512_reduce_add_ps(a); }
  __m512i where(const uint8_t* p) const {
    int32_t low, high;
    __builtin_memcpy(&low, p, 4);
    __builtin_memcpy(&high, p + bits, 4);
    const __m512i both = _mm512_mask_set1_epi32(_mm512_set1_epi32(low), 0xFF00, high);
    return _mm512_add_epi32(_mm512_and_si512(_mm512_srlv_epi32(both, shift), mask), base);
  }
  vf select(const float* x, __m512i where, int) const {
    const vf first = _mm512_permutex2var_ps(load(x), where, load(x + 16));
    if (Span == 32) return first;
    const __mmask16 upper = _mm512_test_epi32_mask(where, _mm512_set1_epi32(32));
    return _mm512_mask_mov_ps(first, upper,
                              _mm512_permutex2var_ps(load(x + 32), where, load(x + 48)));
  }
};

template <class W>
inline void run(const Groups& w, int64_t begin, int64_t end, const float* x, int64_t x_stride,
                int64_t tokens, float* y, int64_t y_stride) {
  if (w.span() == 32)
    spmv_groups<W, Registers<32>>(w, begin, end, x, x_stride, tokens, y, y_stride);
  else
    spmv_groups<W, Registers<64>>(w, begin, end, x, x_stride, tokens, y, y_stride);
}

}  // namespace avx512
}  // namespace se

void se::spmv_groups_f32_avx512(const Groups& w, int64_t begin, int64_t end, const float* x,
                                int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  avx512::run<float>(w, begin, end, x, x_stride, tokens, y, y_stride);
}
void se::spmv_groups_bf16_avx512(const Groups& w, int64_t begin, int64_t end, const float* x,
                                 int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  avx512::run<avx512::bf16>(w, begin, end, x, x_stride, tokens, y, y_stride);
}
void se::spmv_groups_i8_avx512(const Groups& w, int64_t begin, int64_t end, const float* x,
                               int64_t x_stride, int64_t tokens, float* y, int64_t y_stride) {
  avx512::run<int8_t>(w, begin, end, x, x_stride, tokens, y, y_stride);
}
