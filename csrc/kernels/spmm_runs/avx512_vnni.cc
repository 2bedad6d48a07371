#define SE_TARGET avx512_vnni
#include "simd/avx512.h"
#include "kernels/spmm_runs/kernel.h"
#include "kernels/widen.inl.h"
#include "kernels/spmm_runs/pair.inl.h"
#include "kernels/spmm_runs/body.inl.h"

namespace se {
namespace avx512_vnni {

// Multiplies quads. vpdpbusd requires one unsigned operand: activations are bytes x + 128, and the
// accumulator starts at -128 times the sum of the row's weights, which cancels the offset. No step
// saturates.
struct Quads {
  using vec = __m512i;
  using element = int32_t;
  using weight = int32_t;
  static constexpr int kWidth = kLanes;
  static vec zeros() { return _mm512_setzero_si512(); }
  static vec add(vec a, vec b) { return _mm512_add_epi32(a, b); }
  static vec start(const int32_t* corrections, int64_t row) {
    return _mm512_set1_epi32(corrections[row]);
  }
  static vec load(const int32_t* p) { return _mm512_loadu_si512(p); }
  static void store(int32_t* p, vec a) { _mm512_storeu_si512(p, a); }
  static vec broadcast(const int32_t* p) { return _mm512_set1_epi32(*p); }
  static vec multiply_add(vec w, vec x, vec acc) { return _mm512_dpbusd_epi32(acc, x, w); }
};

}  // namespace avx512_vnni
}  // namespace se

void se::spmm_runs_i8_avx512_vnni(const Runs& w, int64_t chunk, const void* x, int64_t tokens,
                                  void* y) {
  using namespace avx512_vnni;
  avx512_vnni::spmm_runs<Quads, Weights<Quads>>(w, chunk, x, tokens, y);
}
