#define SE_TARGET avx2
#include "simd/avx2.h"
#include "kernels/spmm_runs/kernel.h"
#include "kernels/widen.inl.h"
#include "kernels/spmm_runs/pair.inl.h"
#include "kernels/spmm_runs/body.inl.h"

void se::spmm_runs_f32_avx2(const Runs& w, int64_t chunk, const void* x, int64_t tokens, void* y) {
  avx2::spmm_runs<avx2::Floats, avx2::Weights<avx2::Floats>>(w, chunk, x, tokens, y);
}

void se::spmm_runs_bf16_avx2(const Runs& w, int64_t chunk, const void* x, int64_t tokens, void* y) {
  avx2::spmm_runs<avx2::Floats, avx2::WideWeights>(w, chunk, x, tokens, y);
}

namespace se {
namespace avx2 {

// Multiplies quads: four bytes x + 128 with four int8 weights. vpmaddubsw saturates at 2^15, which
// |x| times (weight with the sign of x) never reaches: 2 x 127 x 127 < 2^15.
struct Quads {
  using vec = __m256i;
  using element = int32_t;
  using weight = int32_t;
  static constexpr int kWidth = kLanes;
  static vec zeros() { return _mm256_setzero_si256(); }
  static vec add(vec a, vec b) { return _mm256_add_epi32(a, b); }
  static vec start(const int32_t*, int64_t) { return _mm256_setzero_si256(); }
  static vec load(const int32_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
  static void store(int32_t* p, vec a) { _mm256_storeu_si256((__m256i*)p, a); }
  static vec broadcast(const int32_t* p) { return _mm256_set1_epi32(*p); }
  static vec multiply_add(vec w, vec x, vec acc) {
    const vec signed_x = _mm256_xor_si256(x, _mm256_set1_epi8(static_cast<char>(0x80)));
    const vec pairs =
        _mm256_maddubs_epi16(_mm256_abs_epi8(signed_x), _mm256_sign_epi8(w, signed_x));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};

}  // namespace avx2
}  // namespace se

void se::spmm_runs_i8_avx2(const Runs& w, int64_t chunk, const void* x, int64_t tokens, void* y) {
  avx2::spmm_runs<avx2::Quads, avx2::Weights<avx2::Quads>>(w, chunk, x, tokens, y);
}
