// Small enums shared by common code and per-ISA code: declarations only, no inline functions.
#pragma once

namespace se {

enum class DType : int { f32 = 0, bf16 = 1, i8 = 2 };

enum class Activation : int { none = 0, relu = 1, gelu = 2, gelu_tanh = 3, silu = 4 };

// Ordered: every level contains the ones before it on all processors that exist but Cooper Lake,
// which has BF16 without VBMI2 and counts as avx512_vnni.
enum class Isa : int {
  scalar = 0,
  avx2 = 1,
  avx512 = 2,
  avx512_vnni = 3,
  avx512_vbmi2 = 4,
  avx512_bf16 = 5
};
constexpr int kIsas = 6;

}  // namespace se
