// Makes the buffers that layouts/bits.h draws.
#pragma once

#include "packers/csr.h"

namespace se {

struct BitsBuffers {
  std::vector<uint8_t> values;  // bytes, with 64 values of padding
  std::vector<uint8_t> mask;
  std::vector<int32_t> offsets;
};

BitsBuffers pack_bits(const CsrView& w);

}  // namespace se
