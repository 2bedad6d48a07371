#include "core/cpu.h"

#include <fstream>
#include <sstream>

#if SE_X86
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace se {
namespace {

struct Named {
  const char* name;
  Capabilities with_prerequisites, only;
};

constexpr Named kCapabilities[] = {
#define SE_CAPABILITY(name, prerequisite) {#name, cap::name, cap::only::name},
    SE_CAPABILITIES
#undef SE_CAPABILITY
};

#if SE_X86

// CPUID leaf 7, edx: tile registers.
bool has_tile_registers() {
  uint32_t a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 1);
}

constexpr bool bit(uint32_t word, int i) { return word >> i & 1; }

// XCR0: the register states that the operating system saves.
uint32_t saved_states() {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

// Linux enables the tile registers of a process on request (Documentation/arch/x86/xstate.rst).
bool request_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// Bits of CPUID as in Intel's Software Developer's Manual, volume 2A.
Capabilities detect() {
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27)) return cap::none;  // OSXSAVE
  const bool fma = bit(c, 12), f16c = bit(c, 29);
  const uint32_t states = saved_states();
  const bool ymm = (states & 0x06) == 0x06;
  const bool zmm = (states & 0xE6) == 0xE6;
  const bool tiles = (states & 0x60000) == 0x60000;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return cap::none;
  const uint32_t subleaves = a;

  Capabilities found = cap::none;
  const auto add = [&](bool there, Capabilities added) {
    if (there) found = found | added;
  };
  add(ymm && bit(b, 5) && fma && f16c, cap::only::avx2);
  add(zmm && bit(b, 16) && bit(b, 30) && bit(b, 17) && bit(b, 31), cap::only::avx512);
  add(bit(c, 11), cap::only::vnni);
  add(bit(c, 6), cap::only::vbmi2);
  add(bit(d, 23), cap::only::fp16);
  add(tiles && bit(d, 24) && request_tiles(), cap::only::amx);
  add(bit(d, 25), cap::only::amx_int8);
  add(bit(d, 22), cap::only::amx_bf16);
  if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
    add(bit(a, 5), cap::only::bf16);
    add(bit(a, 21), cap::only::amx_fp16);
  }
  // Drops members whose prerequisites are missing, e.g. AVX-512 VNNI where the system saves no zmm.
  Capabilities usable = cap::none;
  for (const Named& named : kCapabilities)
    if (found.covers(named.with_prerequisites)) usable = usable | named.only;
  return usable;
}

#else
bool has_tile_registers() { return false; }
Capabilities detect() { return cap::none; }
#endif

std::string list_of(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

[[noreturn]] void refuse(const std::string& name) {
  std::vector<std::string> names{"native"};
  for (const Preset& preset : presets()) names.push_back(preset.name);
  std::vector<std::string> members;
  for (const Named& c : kCapabilities) members.push_back(c.name);
  throw std::invalid_argument("unknown ISA '" + name + "': use " + list_of(names) +
                              ", then add or subtract (\"native,-avx512\") " + list_of(members));
}

const Named* find_capability(const std::string& name) {
  for (const Named& c : kCapabilities)
    if (name == c.name) return &c;
  return nullptr;
}

Capabilities subtract(Capabilities from, Capabilities removed) {
  Capabilities kept = from;
  for (const Named& c : kCapabilities)
    if (c.with_prerequisites.covers(removed)) kept = kept - c.only;
  return kept;
}

// The value of a preset, of "native", or of a capability alone.
Capabilities value_of(const std::string& name, Capabilities native) {
  if (name == "native") return native;
  for (const Preset& preset : presets())
    if (name == preset.name) return preset.capabilities;
  if (const Named* c = find_capability(name)) return c->with_prerequisites;
  refuse(name);
}

}  // namespace

Capabilities detected_capabilities() {
  static const Capabilities detected = detect();
  return detected;
}

bool tiles_refused() {
  return has_tile_registers() && !detected_capabilities().covers(cap::only::amx);
}

const std::vector<Preset>& presets() {
  static constexpr Capabilities vnni = cap::vnni, vbmi2 = vnni | cap::vbmi2,
                                bf16 = vbmi2 | cap::bf16, fp16 = bf16 | cap::fp16;
  static const std::vector<Preset> all = {
      {"scalar", cap::none},   {"avx2", cap::avx2},
      {"avx512", cap::avx512}, {"avx512_vnni", vnni},
      {"avx512_vbmi2", vbmi2}, {"avx512_bf16", bf16},
      {"avx512_fp16", fp16},   {"avx512_amx", fp16 | cap::amx_int8 | cap::amx_bf16},
  };
  return all;
}

Capabilities parse_capabilities(const std::string& text, Capabilities native) {
  Capabilities result = !text.empty() && text[0] == '-' ? native : cap::none;
  std::istringstream terms(text + ",");
  for (std::string term; std::getline(terms, term, ',');) {
    const bool minus = !term.empty() && term[0] == '-';
    const std::string name = term.substr(minus || (!term.empty() && term[0] == '+'));
    if (!minus) {
      result = result | value_of(name, native);
    } else if (const Named* c = find_capability(name)) {
      result = subtract(result, c->only);
    } else {
      refuse(term);
    }
  }
  return result;
}

void require_detected(Capabilities capabilities, const std::string& text) {
  const Capabilities missing = capabilities - detected_capabilities();
  if (missing == cap::none) return;
  throw std::invalid_argument("ISA " + text + " was asked for, but this processor lacks " +
                              list_of(capability_names(missing)) + "; it has " +
                              capabilities_text(detected_capabilities()));
}

std::string capabilities_text(Capabilities capabilities) {
  const Preset* largest = nullptr;
  for (const Preset& preset : presets())
    if (capabilities.covers(preset.capabilities)) largest = &preset;
  std::string text = largest->name;
  for (const std::string& name : capability_names(capabilities - largest->capabilities))
    text += "," + name;
  return text;
}

std::vector<std::string> capability_names(Capabilities capabilities) {
  std::vector<std::string> names;
  for (const Named& c : kCapabilities)
    if (capabilities.covers(c.only)) names.push_back(c.name);
  return names;
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
