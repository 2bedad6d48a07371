// The loops that measure peak rates: multiply-adds on registers, and a sum that only reads memory.

namespace se {
namespace SE_TARGET {

// Ten independent chains cover a latency of 4 cycles at two multiply-adds per cycle.
inline float fma_loop(int64_t rounds) {
  vf acc[10];
  for (int i = 0; i < 10; ++i) acc[i] = set1(static_cast<float>(i));
  const vf a = set1(0.5f), b = set1(0.25f);
  for (int64_t r = 0; r < rounds; ++r) {
    SE_UNROLL
    for (int i = 0; i < 10; ++i) acc[i] = fmadd(acc[i], a, b);
  }
  vf sum = acc[0];
  for (int i = 1; i < 10; ++i) sum = add(sum, acc[i]);
  float lanes[kLanes];
  store(lanes, sum);
  return lanes[0];
}

inline float sum_loop(const float* p, int64_t count) {
  vf acc[8];
  for (int i = 0; i < 8; ++i) acc[i] = zero();
  for (int64_t j = 0; j + 8 * kLanes <= count; j += 8 * kLanes) {
    SE_UNROLL
    for (int i = 0; i < 8; ++i) acc[i] = add(acc[i], load(p + j + i * kLanes));
  }
  vf sum = acc[0];
  for (int i = 1; i < 8; ++i) sum = add(sum, acc[i]);
  float lanes[kLanes];
  store(lanes, sum);
  return lanes[0];
}

}  // namespace SE_TARGET
}  // namespace se
