#include "packers/groups.h"

#include <cstring>
#include <stdexcept>

namespace se {

GroupsBuffers pack_groups(const CsrView& w, int64_t keep, int64_t of) {
  int64_t bits = 0;
  while (int64_t{1} << bits < of) ++bits;
  const int64_t span = 16 * of / keep, steps = (w.in + span - 1) / span;
  GroupsBuffers all;
  all.values.resize(w.out * steps * 16 * w.element);
  all.positions.resize(w.out * steps * 2 * bits + 4);
  for (int64_t r = 0; r < w.out; ++r) {
    uint8_t* positions = &all.positions[r * steps * 2 * bits];
    int64_t group = -1, in_group = 0;
    for (int32_t e = w.pointers[r]; e < w.pointers[r + 1]; ++e) {
      const int64_t here = w.columns[e] / of;
      in_group = here == group ? in_group + 1 : 0;
      group = here;
      if (in_group == keep)
        throw std::invalid_argument("groups: a group has more non-zeros than it keeps");
      const int64_t slot = group * keep + in_group;
      std::memcpy(&all.values[(r * steps * 16 + slot) * w.element],
                  static_cast<const char*>(w.values) + e * w.element, w.element);
      for (int64_t b = 0, at = slot * bits; b < bits; ++b, ++at)
        positions[at / 8] |= static_cast<uint8_t>((w.columns[e] % of >> b & 1) << at % 8);
    }
  }
  return all;
}

}  // namespace se
