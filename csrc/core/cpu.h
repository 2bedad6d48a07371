// The capabilities of this processor, and the texts that name sets of them.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "core/capabilities.h"

namespace se {

// What both the processor and the operating system support. Detected once. Asks Linux for the
// permission to use AMX tiles where the processor has them.
Capabilities detected_capabilities();

// Whether the processor has AMX and the operating system does not let this process use it, as in
// some containers and virtual machines.
bool tiles_refused();

std::string cpu_name();

// A named set, from small to large: scalar, avx2, avx512, avx512_vnni, avx512_vbmi2, avx512_bf16,
// avx512_fp16, avx512_amx. Each contains the ones before it.
struct Preset {
  const char* name;
  Capabilities capabilities;
};
const std::vector<Preset>& presets();

// The set that `text` names: a preset or "native", then any number of ",capability" or
// ",-capability"; "-amx" is short for "native,-amx". Adding a capability adds its prerequisites;
// subtracting one subtracts whatever needs it. `native` is the value of "native". Throws
// std::invalid_argument, in one line that lists the names, for anything else.
Capabilities parse_capabilities(const std::string& text, Capabilities native);

// Throws std::invalid_argument if this processor lacks any of `capabilities`, which `text` named.
void require_detected(Capabilities capabilities, const std::string& text);

// A text that parse_capabilities reads back: the largest preset inside the set, then the others,
// e.g. "avx512_vbmi2,amx_int8".
std::string capabilities_text(Capabilities capabilities);

// The names of the members, prerequisites first.
std::vector<std::string> capability_names(Capabilities capabilities);

}  // namespace se
