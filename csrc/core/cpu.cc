#include "core/cpu.h"

#include <cstdlib>
#include <fstream>
#include <stdexcept>

namespace se {
namespace {

constexpr const char* kNames[kIsas] = {"scalar",      "avx2",         "avx512",
                                       "avx512_vnni", "avx512_vbmi2", "avx512_bf16"};

Isa detect() {
#if SE_X86
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::scalar;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return Isa::avx2;
  if (!__builtin_cpu_supports("avx512vnni")) return Isa::avx512;
  if (!__builtin_cpu_supports("avx512vbmi2")) return Isa::avx512_vnni;
  if (!__builtin_cpu_supports("avx512bf16")) return Isa::avx512_vbmi2;
  return Isa::avx512_bf16;
#else
  return Isa::scalar;
#endif
}

}  // namespace

Isa detected_isa() {
  static const Isa isa = detect();
  return isa;
}

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

Isa parse_isa(const std::string& name) {
  for (int i = 0; i < kIsas; ++i) {
    if (name != kNames[i]) continue;
    if (static_cast<Isa>(i) > detected_isa())
      throw std::invalid_argument("ISA " + name + " was asked for, but this processor has " +
                                  isa_name(detected_isa()) + " at most");
    return static_cast<Isa>(i);
  }
  throw std::invalid_argument("unknown ISA '" + name +
                              "': use scalar, avx2, avx512, avx512_vnni, avx512_vbmi2 or "
                              "avx512_bf16");
}

std::optional<Isa> forced_isa() {
  const char* forced = std::getenv("SPARSE_ENGINE_ISA");
  if (!forced || !*forced) return std::nullopt;
  try {
    return parse_isa(forced);
  } catch (const std::invalid_argument& error) {
    throw ForcedIsaError(std::string("SPARSE_ENGINE_ISA: ") + error.what());
  }
}

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("model name", 0) != 0) continue;
    const auto colon = line.find(':');
    if (colon != std::string::npos && colon + 2 <= line.size()) return line.substr(colon + 2);
  }
  return "unknown processor";
}

}  // namespace se
