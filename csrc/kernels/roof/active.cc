#include "kernels/roof/active.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>

#include "core/cpu.h"
#include "kernels/roof/roof.h"

namespace se {
namespace {

#if SE_X86

// Whether vdpbf16ps, which multiplies twice as many numbers, takes less than twice as long as a
// float multiply-add.
bool bf16_products_pay() {
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

Capabilities measure_native() {
  const Capabilities detected = detected_capabilities();
  if (!detected.covers(cap::bf16) || bf16_products_pay()) return detected;
  return detected - cap::only::bf16;
}

#else
Capabilities measure_native() { return detected_capabilities(); }
#endif

}  // namespace

Capabilities native_capabilities() {
  static const Capabilities native = measure_native();
  return native;
}

Capabilities active_capabilities() {
  const char* forced = std::getenv("SPARSE_ENGINE_ISA");
  if (!forced || !*forced) return native_capabilities();
  try {
    return detected_subset(forced);
  } catch (const std::invalid_argument& error) {
    throw ForcedIsaError(std::string("SPARSE_ENGINE_ISA: ") + error.what());
  }
}

Capabilities detected_subset(const std::string& text) {
  const Capabilities named = parse_capabilities(text, native_capabilities());
  require_detected(named, text);
  return named;
}

}  // namespace se
