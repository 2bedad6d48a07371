// Panels to the operands of tile products, and back, in squares of kLanes x kLanes.

namespace se {
namespace SE_TARGET {

// 16 lanes of `count` rows, `stride` apart -> put(k, lane, vector) for each lane and kLanes rows
// from k on, up to `padded`; rows past `count` hold `empty`.
template <class F>
inline void transpose_lanes(const float* x, int64_t stride, int64_t count, int64_t padded, vf empty,
                            F put) {
  for (int64_t k = 0; k < padded; k += kLanes)
    for (int64_t t = 0; t < 16; t += kLanes) {
      vf square[kLanes];
      SE_UNROLL
      for (int i = 0; i < kLanes; ++i)
        square[i] = k + i < count ? load(x + (k + i) * stride + t) : empty;
      transpose(square);
      SE_UNROLL
      for (int i = 0; i < kLanes; ++i) put(k, t + i, square[i]);
    }
}

inline void lanes_to_tiles(const float* x, int64_t stride, int64_t features, void* tiles) {
  bf16* to = static_cast<bf16*>(tiles);
  transpose_lanes(
      x, stride, features, (features + 31) / 32 * 32, zero(),
      [&](int64_t k, int64_t t, vf a) { store(to + k / 32 * 512 + t * 32 + k % 32, a); });
}

inline void quads_to_tiles(const float* quads, int64_t stride, int64_t count, void* tiles) {
  const uint32_t zeros = 0x80808080u;
  float empty;
  __builtin_memcpy(&empty, &zeros, 4);
  float* to = static_cast<float*>(tiles);
  const int64_t padded = (count + 15) / 16 * 16;
  transpose_lanes(quads, stride, count, padded, set1(empty), [&](int64_t k, int64_t t, vf a) {
    store(to + k / 16 * 256 + t * 16 + k % 16, a);
  });
  uint8_t* bytes = static_cast<uint8_t*>(tiles);
  for (int64_t i = 0; i < padded * 64; ++i) bytes[i] ^= 0x80;  // without the offset of 128
}

inline void tiles_to_lanes(const void* sums, int64_t stride, void* acc) {
  float* to = static_cast<float*>(acc);
  const float* from = static_cast<const float*>(sums);
  for (int64_t r = 0; r < 32; r += kLanes)
    for (int64_t t = 0; t < 16; t += kLanes) {
      vf square[kLanes];
      SE_UNROLL
      for (int i = 0; i < kLanes; ++i) square[i] = load(from + (t + i) * 32 + r);
      transpose(square);
      SE_UNROLL
      for (int i = 0; i < kLanes; ++i) store(to + (r + i) * stride + t, square[i]);
    }
}

}  // namespace SE_TARGET
}  // namespace se
