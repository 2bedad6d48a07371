// The token orders of panels of bf16 and of bytes (kernel.h), over the vector layer.

namespace se {
namespace SE_TARGET {

// Where a token lies in a row of a panel of `width` tokens. Panels of 16 are in token order.
inline int64_t bf16_of_token(int64_t t, int64_t width) {  // 0-3 16-19 4-7 20-23 8-11 24-27 ..
  return width < 32 ? t : (t & ~int64_t{28}) | (t & 12) << 1 | (t & 16) >> 2;
}
inline int64_t byte_of_token(int64_t t, int64_t width) {  // 0-7 16-23 8-15 24-31
  return width < 32 ? t : (t & ~int64_t{24}) | (t & 8) << 1 | (t & 16) >> 1;
}

// The lanes of tokens t to t + kLanes - 1 to a row of a panel.
inline void store_bf16_lanes(uint16_t* row, int64_t t, int64_t width, vf a) {
  bf16 lanes[kLanes];
  store(lanes, a);
  SE_UNROLL
  for (int i = 0; i < kLanes; i += 4)
    __builtin_memcpy(row + bf16_of_token(t + i, width), lanes + i, 8);
}

// round(a) as int8 for |a| up to 127.
inline void store_byte_lanes(int8_t* row, int64_t t, int64_t width, vf a) {
  constexpr int kPiece = kLanes < 8 ? kLanes : 8;
  uint8_t lanes[kLanes];
  store_offset_bytes(lanes, a);
  SE_UNROLL
  for (int i = 0; i < kLanes; ++i) lanes[i] ^= 0x80;  // without the offset of 128
  SE_UNROLL
  for (int i = 0; i < kLanes; i += kPiece)
    __builtin_memcpy(row + byte_of_token(t + i, width), lanes + i, kPiece);
}

}  // namespace SE_TARGET
}  // namespace se
