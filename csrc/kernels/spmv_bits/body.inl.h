// The algorithm of spmv_bits over one kind of step; included once per compile target. A step covers
// as many columns as a register holds values: it loads their bits, expands the values to their
// columns and multiplies once. The position of the next values depends on the bits alone, so it
// does not wait for the multiply-adds.

namespace se {
namespace SE_TARGET {

// Step has kColumns and kBytes (of x) per step, the types Mask, value, expanded and acc, and the
// functions start, expand, multiply_add and sum.
template <class Step, int T>
inline void rows(const Bits& m, int64_t begin, int64_t end, const char* x, int64_t x_stride,
                 float* y, int64_t y_stride) {
  const int64_t steps = m.stride * 8 / Step::kColumns;
  for (int64_t r = begin; r < end; ++r) {
    const auto* value = static_cast<const typename Step::value*>(m.values) + m.offsets[r];
    const uint8_t* mask = m.mask + r * m.stride;
    typename Step::acc acc[T];
    SE_UNROLL
    for (int t = 0; t < T; ++t) acc[t] = Step::start();
    for (int64_t i = 0; i < m.stride; i += 64) prefetch(mask + i, kPrefetchDistance / 4);
    for (int64_t s = 0; s < steps; ++s) {
      prefetch(value);
      typename Step::Mask bits;
      __builtin_memcpy(&bits, mask + s * sizeof bits, sizeof bits);
      const typename Step::expanded w = Step::expand(bits, value);
      value += __builtin_popcountll(bits);
      SE_UNROLL
      for (int t = 0; t < T; ++t)
        Step::multiply_add(w, x + t * x_stride + s * Step::kBytes, acc[t]);
    }
    SE_UNROLL
    for (int t = 0; t < T; ++t)
      y[t * y_stride + r] = Step::sum(acc[t], m.corrections ? m.corrections[r] : 0);
  }
}

template <class Step>
inline void spmv_bits(const Bits& m, int64_t begin, int64_t end, const void* x, int64_t x_stride,
                      int64_t tokens, float* y, int64_t y_stride) {
  const char* p = static_cast<const char*>(x);
  if (tokens == 1) return rows<Step, 1>(m, begin, end, p, x_stride, y, y_stride);
  if (tokens == 2) return rows<Step, 2>(m, begin, end, p, x_stride, y, y_stride);
  if (tokens == 3) return rows<Step, 3>(m, begin, end, p, x_stride, y, y_stride);
  rows<Step, 4>(m, begin, end, p, x_stride, y, y_stride);
}

}  // namespace SE_TARGET
}  // namespace se
