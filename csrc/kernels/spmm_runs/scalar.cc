#define SE_TARGET scalar
#include "simd/scalar.h"
#include "kernels/spmm_runs/kernel.h"
#include "kernels/widen.inl.h"
#include "kernels/spmm_runs/pair.inl.h"
#include "kernels/spmm_runs/body.inl.h"

void se::spmm_runs_f32_scalar(const Runs& w, int64_t chunk, const void* x, int64_t tokens,
                              void* y) {
  scalar::spmm_runs<scalar::Floats, scalar::Weights<scalar::Floats>>(w, chunk, x, tokens, y);
}

void se::spmm_runs_bf16_scalar(const Runs& w, int64_t chunk, const void* x, int64_t tokens,
                               void* y) {
  scalar::spmm_runs<scalar::Floats, scalar::WideWeights>(w, chunk, x, tokens, y);
}

namespace se {
namespace scalar {

// Multiplies quads, lane by lane: four bytes x + 128 with four int8 weights.
struct Quads {
  struct vec {
    int32_t lane[4];
  };
  using element = int32_t;
  using weight = int32_t;
  static constexpr int kWidth = kLanes;
  static vec zeros() { return {{0, 0, 0, 0}}; }
  static vec add(vec a, vec b) {
    for (int i = 0; i < 4; ++i) a.lane[i] += b.lane[i];
    return a;
  }
  static vec start(const int32_t*, int64_t) { return {{0, 0, 0, 0}}; }
  static vec load(const int32_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static void store(int32_t* p, vec a) { std::memcpy(p, a.lane, sizeof a.lane); }
  static vec broadcast(const int32_t* p) { return {{*p, *p, *p, *p}}; }
  static vec multiply_add(vec w, vec x, vec acc) {
    for (int i = 0; i < 4; ++i) {
      int8_t wq[4];
      uint8_t xq[4];
      std::memcpy(wq, &w.lane[i], 4);
      std::memcpy(xq, &x.lane[i], 4);
      for (int j = 0; j < 4; ++j) acc.lane[i] += wq[j] * (xq[j] - 128);
    }
    return acc;
  }
};

}  // namespace scalar
}  // namespace se

void se::spmm_runs_i8_scalar(const Runs& w, int64_t chunk, const void* x, int64_t tokens, void* y) {
  scalar::spmm_runs<scalar::Quads, scalar::Weights<scalar::Quads>>(w, chunk, x, tokens, y);
}
