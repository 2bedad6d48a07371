// Makes the buffers that layouts/groups.h draws.
#pragma once

#include "packers/csr.h"

namespace se {

struct GroupsBuffers {
  std::vector<uint8_t> values;     // bytes, [out][16 steps]
  std::vector<uint8_t> positions;  // with 4 bytes of padding
};

// `of` is 2, 4, 8 or 16, and 2 or 4 times `keep`. Throws std::invalid_argument for a group of `of`
// columns with more than `keep` non-zeros.
GroupsBuffers pack_groups(const CsrView& w, int64_t keep, int64_t of);

}  // namespace se
