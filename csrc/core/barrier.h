// A barrier for threads that synchronise every few microseconds.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace se {

// Spins for a while, then yields, so that it also works with more threads than cores. Cheaper than
// an OpenMP barrier, and usable by a part of the team.
class alignas(64) SpinBarrier {
 public:
  // Sets the number of threads. Call it only while no thread waits.
  void expect(int64_t threads) { threads_ = threads; }

  void wait() {
    if (threads_ == 1) return;
    const uint32_t turn = turn_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; turn_.load(std::memory_order_acquire) == turn; ++spins)
      spins < kSpins ? pause() : std::this_thread::yield();
  }

 private:
  static constexpr int kSpins = 4096;  // tens of microseconds
  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
  }

  int64_t threads_ = 1;
  alignas(64) std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> turn_{0};
};

}  // namespace se
