#include "packers/bits.h"

#include <cstring>

namespace se {

BitsBuffers pack_bits(const CsrView& w) {
  const int64_t stride = (w.in + 63) / 64 * 8, entries = w.pointers[w.out];
  BitsBuffers all;
  all.values.resize((entries + 64) * w.element);
  if (entries) std::memcpy(all.values.data(), w.values, entries * w.element);
  all.mask.resize(w.out * stride);
  for (int64_t r = 0; r < w.out; ++r)
    for (int32_t e = w.pointers[r]; e < w.pointers[r + 1]; ++e)
      all.mask[r * stride + w.columns[e] / 8] |= static_cast<uint8_t>(1 << w.columns[e] % 8);
  all.offsets.assign(w.pointers, w.pointers + w.out + 1);
  return all;
}

}  // namespace se
