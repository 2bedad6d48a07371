// Widens bf16 weights to floats, many at a time. Widening each weight inside a loop of
// multiply-adds would cost a shift and a broadcast on the ports that multiply.

namespace se {
namespace SE_TARGET {

inline const float* widen(const float* w, int64_t, float*) { return w; }

// `buffer` has room for `count` floats, rounded up to a vector.
inline const float* widen(const bf16* w, int64_t count, float* buffer) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(buffer + i, load(w + i));
  for (; i < count; ++i) {
    const uint32_t u = static_cast<uint32_t>(w[i].bits) << 16;
    __builtin_memcpy(buffer + i, &u, 4);
  }
  return buffer;
}

}  // namespace SE_TARGET
}  // namespace se
