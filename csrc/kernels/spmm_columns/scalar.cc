#define SE_TARGET scalar
#include "simd/scalar.h"
#include "kernels/spmm_columns/kernel.h"

void se::spmm_columns_bf16_scalar(const Columns& w, int64_t begin, int64_t end, const void* x,
                                  int64_t tokens, float* y) {
  const float* panel = static_cast<const float*>(x);
  for (int64_t b = begin; b < end; ++b)
    for (int64_t r = 0; r < w.height; ++r, y += tokens) {
      for (int64_t t = 0; t < tokens; ++t) y[t] = 0;
      for (int64_t s = w.pointers[b]; s < w.pointers[b + 1]; ++s) {
        const auto* values = static_cast<const scalar::bf16*>(w.values) + (s * w.height + r) * 32;
        for (int64_t i = 0; i < Columns::kStep; ++i) {
          const float* xk = panel + w.columns[s * Columns::kStep + i] * tokens;
          for (int64_t t = 0; t < tokens; ++t) y[t] += scalar::widen(values[i]) * xk[t];
        }
      }
    }
}
