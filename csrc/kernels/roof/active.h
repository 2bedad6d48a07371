// The capabilities in use: those of this processor, or what SPARSE_ENGINE_ISA names.
#pragma once

#include <stdexcept>
#include <string>

#include "core/capabilities.h"

namespace se {

// SPARSE_ENGINE_ISA has an unknown name, or a capability that this processor lacks.
struct ForcedIsaError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// The detected capabilities, without bf16 where vdpbf16ps is so slow that widening to float pays
// (Sapphire and Emerald Rapids: a quarter of the rate that Zen 4 has per cycle). Measured once, in
// microseconds.
Capabilities native_capabilities();

// The set that SPARSE_ENGINE_ISA names, or else native_capabilities(). Reads the variable at every
// call, so that a test can change it. Throws ForcedIsaError.
Capabilities active_capabilities();

// The set that `text` names (see parse_capabilities); throws std::invalid_argument if it names none
// or one that this processor lacks.
Capabilities detected_subset(const std::string& text);

}  // namespace se
