#include "kernels/roof/roof.h"

#include "core/cpu.h"

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <vector>

namespace se {
namespace {

struct Loops {
  Isa isa;
  int lanes;
  float (*fma)(int64_t);
  float (*sum)(const float*, int64_t);
};

constexpr int lanes_of(Isa isa) { return isa == Isa::scalar ? 4 : isa == Isa::avx2 ? 8 : 16; }

constexpr Loops kTable[] = {
#define SE_ROOF(isa) {Isa::isa, lanes_of(Isa::isa), fma_loop_##isa, sum_loop_##isa},
#include "kernels/roof/kernels.inc"
#undef SE_ROOF
};

const Loops& loops(Isa isa) {
  const Loops* row = kTable;
  while (row->isa > isa) ++row;
  return *row;
}

// Fastest of several rounds, all threads at once: a roof is the best case, not the usual one.
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

#if SE_X86
namespace {

// Whether a bf16 product, of twice the numbers, takes less than twice a float multiply-add.
bool bf16_dot_pays() {
  constexpr int64_t kRounds = 3000;
  const auto seconds = [](float (*loop)(int64_t)) {
    double best = 1e30;
    volatile float sink = 0;
    for (int i = 0; i < 7; ++i) {
      const auto start = std::chrono::steady_clock::now();
      sink = loop(kRounds);
      const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
      best = std::min(best, spent.count());
    }
    (void)sink;
    return best;
  };
  return seconds(bf16_dot_loop_avx512_bf16) < 1.8 * seconds(fma_loop_avx512);
}

}  // namespace
#endif

Isa active_isa() {
  if (const std::optional<Isa> forced = forced_isa()) return *forced;
#if SE_X86
  if (detected_isa() == Isa::avx512_bf16) {
    static const bool pays = bf16_dot_pays();
    if (!pays) return Isa::avx512_vbmi2;
  }
#endif
  return detected_isa();
}

double peak_gflops(DType dtype, Isa isa) {
  constexpr int64_t kRounds = 400000;
  const auto rate = [](float (*loop)(int64_t), double operations) {
    const double seconds = best_seconds([&](int, int) { return loop(kRounds); });
    return operations * kRounds * omp_get_max_threads() / seconds * 1e-9;
  };
  const Loops& l = loops(isa);
  double best = rate(l.fma, 20.0 * l.lanes);
#if SE_X86
  if (dtype == DType::bf16 && isa >= Isa::avx512_bf16)
    best = std::max(best, rate(bf16_dot_loop_avx512_bf16, 10.0 * 64));
  if (dtype == DType::i8 && isa >= Isa::avx512_vnni)
    best = std::max(best, rate(i8_dot_loop_avx512_vnni, 12.0 * 128));
#endif
  return best;
}

double read_gbytes_per_second(int64_t bytes, Isa isa) {
  const int64_t threads = omp_get_max_threads();
  const int64_t share = std::max<int64_t>(bytes / 4 / threads / 128, 1) * 128;
  const std::vector<float> memory(share * threads, 1.0f);
  const int64_t repeats = std::max<int64_t>(1, (int64_t{64} << 20) / (share * threads * 4));
  const Loops& l = loops(isa);
  const double seconds = best_seconds([&](int thread, int) {
    float total = 0;
    for (int64_t i = 0; i < repeats; ++i) total += l.sum(memory.data() + thread * share, share);
    return total;
  });
  return static_cast<double>(share) * threads * 4 * repeats / seconds * 1e-9;
}

}  // namespace se
