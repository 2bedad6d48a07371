#include "kernels/roof/roof.h"

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "kernels/table.h"

namespace se {
namespace {

struct Loops {
  CompileTarget target;
  int lanes;
  float (*fma)(int64_t);
  float (*sum)(const float*, int64_t);
};

constexpr Loops kTable[] = {
#define SE_ROOF(target, lanes) {targets::target, lanes, fma_loop_##target, sum_loop_##target},
#include "kernels/roof/kernels.inc"
#undef SE_ROOF
};

// The fastest of several rounds, all threads at once: a roof is the best case.
template <class F>
double best_seconds(F body) {
  double best = 1e30;
  volatile float sink = 0;
  for (int round = 0; round < 7; ++round) {
    const auto start = std::chrono::steady_clock::now();
    float total = 0;
#pragma omp parallel reduction(+ : total)
    total += body(omp_get_thread_num(), omp_get_num_threads());
    sink = total;
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
    best = std::min(best, spent.count());
  }
  (void)sink;
  return best;
}

}  // namespace

double peak_gflops(DType dtype, Capabilities caps) {
  const auto rate = [](float (*loop)(int64_t), double operations, int64_t rounds = 400000) {
    const double seconds = best_seconds([&](int, int) { return loop(rounds); });
    return operations * rounds * omp_get_max_threads() / seconds * 1e-9;
  };
  const Loops& l = best_row(kTable, caps);
  double best = rate(l.fma, 20.0 * l.lanes);
#if SE_X86
  if (dtype == DType::bf16 && caps.covers(targets::avx512_bf16.needs))
    best = std::max(best, rate(bf16_dot_loop_avx512_bf16, 10.0 * 64));
  if (dtype == DType::i8 && caps.covers(targets::avx512_vnni.needs))
    best = std::max(best, rate(i8_dot_loop_avx512_vnni, 12.0 * 128));
  if (caps.covers(targets::avx512_amx.needs)) {
    constexpr int64_t kRounds = 50000;
    const double products = dtype == DType::f32 ? 6 : 1;
    best = std::max(best, dtype == DType::i8
                              ? rate(i8_tile_loop_avx512_amx, 4.0 * 32768, kRounds)
                              : rate(bf16_tile_loop_avx512_amx, 4.0 * 16384, kRounds) / products);
  }
#endif
  return best;
}

double read_gbytes_per_second(int64_t bytes, Capabilities caps) {
  const int64_t threads = omp_get_max_threads();
  const int64_t share = std::max<int64_t>(bytes / 4 / threads / 128, 1) * 128;
  const std::vector<float> memory(share * threads, 1.0f);
  const int64_t repeats = std::max<int64_t>(1, (int64_t{64} << 20) / (share * threads * 4));
  const Loops& l = best_row(kTable, caps);
  const double seconds = best_seconds([&](int thread, int) {
    float total = 0;
    for (int64_t i = 0; i < repeats; ++i) total += l.sum(memory.data() + thread * share, share);
    return total;
  });
  return static_cast<double>(share) * threads * 4 * repeats / seconds * 1e-9;
}

}  // namespace se
