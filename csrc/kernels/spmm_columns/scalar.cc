#define SE_TARGET scalar
#include "simd/scalar.h"
#include "kernels/spmm_columns/kernel.h"
#include "kernels/panel_io/order.inl.h"

namespace se {
namespace scalar {

// multiply(w, x, k, t) is the product of the value w with column k of token t.
template <class Value, class Sum, class F>
inline void spmm_columns(const Columns& w, int64_t begin, int64_t end, int64_t tokens, Sum* sums,
                         F multiply) {
  const int64_t step = w.step();
  for (int64_t b = begin; b < end; ++b)
    for (int64_t r = 0; r < w.height; ++r, sums += tokens) {
      for (int64_t t = 0; t < tokens; ++t) sums[t] = 0;
      for (int64_t s = w.pointers[b]; s < w.pointers[b + 1]; ++s) {
        const Value* values = static_cast<const Value*>(w.values) + (s * w.height + r) * step;
        for (int64_t i = 0; i < step; ++i)
          for (int64_t t = 0; t < tokens; ++t)
            sums[t] += multiply(values[i], w.columns[s * step + i], t);
      }
    }
}

}  // namespace scalar
}  // namespace se

void se::spmm_columns_bf16_scalar(const Columns& w, int64_t begin, int64_t end, const void* x,
                                  int64_t tokens, void* sums) {
  const float* panel = static_cast<const float*>(x);
  scalar::spmm_columns<scalar::bf16>(w, begin, end, tokens, static_cast<float*>(sums),
                                     [&](scalar::bf16 a, int64_t k, int64_t t) {
                                       return scalar::widen(a) * panel[k * tokens + t];
                                     });
}

void se::spmm_columns_i8_scalar(const Columns& w, int64_t begin, int64_t end, const void* x,
                                int64_t tokens, void* sums) {
  const int8_t* panel = static_cast<const int8_t*>(x);
  scalar::spmm_columns<int8_t>(
      w, begin, end, tokens, static_cast<int32_t*>(sums), [&](int8_t a, int64_t k, int64_t t) {
        return int32_t{a} * panel[k * tokens + scalar::byte_of_token(t, tokens)];
      });
}
