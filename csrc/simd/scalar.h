// The vector layer in plain C++. It defines what every function in simd/<target>.h computes, and it
// serves machines without a file of their own. A vector holds four floats, so that the compiler can
// use baseline instructions.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define SE_UNROLL _Pragma("GCC unroll 16")

namespace se {
namespace SE_TARGET {

struct vf {
  float lane[4];
};
struct bf16 {
  uint16_t bits;
};
constexpr int kLanes = 4;
constexpr int kAccumulators = 16;  // vectors that a kernel may keep in registers

template <class F>
inline vf each(F f) {
  vf r;
  for (int i = 0; i < 4; ++i) r.lane[i] = f(i);
  return r;
}
inline float widen(bf16 a) {
  const uint32_t u = static_cast<uint32_t>(a.bits) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

inline vf zero() { return {{0, 0, 0, 0}}; }
inline vf set1(float a) { return {{a, a, a, a}}; }
inline vf load(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
inline void store(float* p, vf a) { std::memcpy(p, a.lane, sizeof a.lane); }
// A store that may bypass the caches.
inline void stream(float* p, vf a) { store(p, a); }
inline vf load(const bf16* p) {
  return each([=](int i) { return widen(p[i]); });
}
inline vf broadcast(const float* p) { return set1(*p); }

inline vf fmadd(vf a, vf b, vf c) {
  return each([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}
inline vf add(vf a, vf b) {
  return each([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline vf sub(vf a, vf b) {
  return each([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline vf mul(vf a, vf b) {
  return each([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline vf div(vf a, vf b) {
  return each([&](int i) { return a.lane[i] / b.lane[i]; });
}
// 1 / a for finite a from 1 on, within two units in the last place; above 2^126 it may be 0.
inline vf inverse(vf a) {
  return each([&](int i) { return 1.0f / a.lane[i]; });
}
// max(bound, a) and min(bound, a); a NaN in `a` is returned.
inline vf at_least(vf bound, vf a) {
  return each([&](int i) { return bound.lane[i] > a.lane[i] ? bound.lane[i] : a.lane[i]; });
}
inline vf at_most(vf bound, vf a) {
  return each([&](int i) { return bound.lane[i] < a.lane[i] ? bound.lane[i] : a.lane[i]; });
}
inline vf round_even(vf a) {
  return each([&](int i) { return std::nearbyintf(a.lane[i]); });
}
// a * 2^n for whole n in [-126, 127].
inline vf scale_by_power(vf a, vf n) {
  return each([&](int i) { return a.lane[i] * std::exp2f(n.lane[i]); });
}
inline vf abs(vf a) {
  return each([&](int i) { return std::fabs(a.lane[i]); });
}
inline vf copy_sign(vf magnitude, vf sign) {
  return each([&](int i) { return std::copysign(magnitude.lane[i], sign.lane[i]); });
}

// A vector that was loaded from integers, as floats.
inline vf from_integers(vf a) {
  return each([&](int i) {
    int32_t integer;
    std::memcpy(&integer, &a.lane[i], 4);
    return static_cast<float>(integer);
  });
}

// Integers as floats.
inline vf load(const int32_t* p) {
  return each([=](int i) { return static_cast<float>(p[i]); });
}
// Round to nearest even, plus 128, as bytes; -127 <= a <= 127.
inline void store_offset_bytes(uint8_t* p, vf a) {
  for (int i = 0; i < 4; ++i) p[i] = static_cast<uint8_t>(std::nearbyintf(a.lane[i]) + 128.0f);
}
// Lane i holds the bytes of a, b, c and d in that order, each as in store_offset_bytes.
inline void store_offset_quads(float* p, vf a, vf b, vf c, vf d) {
  const vf* parts[4] = {&a, &b, &c, &d};
  for (int i = 0; i < 4; ++i) {
    uint8_t bytes[4];
    for (int j = 0; j < 4; ++j)
      bytes[j] = static_cast<uint8_t>(std::nearbyintf(parts[j]->lane[i]) + 128.0f);
    std::memcpy(p + i, bytes, 4);
  }
}

inline vf load(const int8_t* p) {
  return each([=](int i) { return static_cast<float>(p[i]); });
}

// Lane i is window[which[i]], where which[i] < 32; 32 floats of the window must be readable.
using Picks = const uint8_t*;
inline Picks load_picks(const uint8_t* p) { return p; }
inline vf pick(const float* window, Picks which) {
  return each([=](int i) { return window[which[i]]; });
}

// Round to nearest even; NaN stays NaN.
inline void store(bf16* p, vf a) {
  for (int i = 0; i < 4; ++i) {
    uint32_t u;
    std::memcpy(&u, &a.lane[i], 4);
    const bool nan = a.lane[i] != a.lane[i];
    p[i].bits = static_cast<uint16_t>((nan ? u | 0x00400000u : u + 0x7FFF + (u >> 16 & 1)) >> 16);
  }
}

// Rounded to bf16.
inline vf nearest_bf16(vf a) {
  bf16 rounded[4];
  store(rounded, a);
  return load(rounded);
}

// r[i][j] <-> r[j][i].
inline void transpose(vf (&r)[4]) {
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < i; ++j) {
      const float t = r[i].lane[j];
      r[i].lane[j] = r[j].lane[i];
      r[j].lane[i] = t;
    }
}

// column[j] holds element j of kLanes rows, `stride` apart; floats or integers.
constexpr int kColumns = 4;
inline void load_columns(const float* p, int64_t stride, vf (&column)[kColumns]) {
  for (int j = 0; j < kColumns; ++j)
    for (int i = 0; i < 4; ++i) std::memcpy(&column[j].lane[i], p + i * stride + j, 4);
}

}  // namespace SE_TARGET
}  // namespace se
