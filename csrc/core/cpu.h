// Which instruction sets this processor has, and which one was chosen.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>

#include "core/types.h"

namespace se {

// Highest level that both the processor and the operating system support.
Isa detected_isa();

// SPARSE_ENGINE_ISA has an unknown name, or a level that this processor lacks.
struct ForcedIsaError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// What SPARSE_ENGINE_ISA forces, if anything. Read at every call, so that a test can switch. Throws
// ForcedIsaError.
std::optional<Isa> forced_isa();

// "scalar", "avx2", "avx512", "avx512_vnni", "avx512_vbmi2", "avx512_bf16".
const char* isa_name(Isa isa);

// Throws std::invalid_argument, naming the levels, for anything else or a level that is not
// detected.
Isa parse_isa(const std::string& name);

std::string cpu_name();

}  // namespace se
