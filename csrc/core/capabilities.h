// Instruction-set capabilities: what a processor offers and what a kernel needs, as sets. For
// common code and per-target code: plain data and constexpr functions, no standard library.
#pragma once

#include <cstdint>

namespace se {

// SE_CAPABILITY(name, prerequisite): a group of instructions that always comes together. Whatever
// has it also has its prerequisite.
#define SE_CAPABILITIES                                                       \
  SE_CAPABILITY(avx2, none)    /* AVX2, FMA and F16C */                       \
  SE_CAPABILITY(avx512, avx2)  /* AVX-512 F, BW, DQ and VL */                 \
  SE_CAPABILITY(vnni, avx512)  /* vpdpbusd: int8 products */                  \
  SE_CAPABILITY(vbmi2, avx512) /* vpexpandb, vpexpandw */                     \
  SE_CAPABILITY(bf16, avx512)  /* vdpbf16ps */                                \
  SE_CAPABILITY(fp16, avx512)  /* half-precision arithmetic */                \
  SE_CAPABILITY(amx, avx512)   /* tile registers, enabled for this process */ \
  SE_CAPABILITY(amx_int8, amx) /* tdpbssd */                                  \
  SE_CAPABILITY(amx_bf16, amx) /* tdpbf16ps */                                \
  SE_CAPABILITY(amx_fp16, amx) /* tdpfp16ps */

// A set of capabilities.
struct Capabilities {
  uint32_t bits;

  constexpr bool covers(Capabilities needs) const { return (needs.bits & ~bits) == 0; }
};

constexpr Capabilities operator|(Capabilities a, Capabilities b) { return {a.bits | b.bits}; }
constexpr Capabilities operator-(Capabilities a, Capabilities b) { return {a.bits & ~b.bits}; }
constexpr bool operator==(Capabilities a, Capabilities b) { return a.bits == b.bits; }

// The capabilities by name. Each includes its prerequisites: cap::vnni is {avx2, avx512, vnni}.
namespace cap {

enum Index : int {
#define SE_CAPABILITY(name, prerequisite) k_##name,
  SE_CAPABILITIES
#undef SE_CAPABILITY
};

constexpr Capabilities none{0};
#define SE_CAPABILITY(name, prerequisite) \
  constexpr Capabilities name = Capabilities{uint32_t{1} << k_##name} | prerequisite;
SE_CAPABILITIES
#undef SE_CAPABILITY

// One capability without its prerequisites, for subtraction.
namespace only {
#define SE_CAPABILITY(name, prerequisite) constexpr Capabilities name{uint32_t{1} << k_##name};
SE_CAPABILITIES
#undef SE_CAPABILITY
}  // namespace only

}  // namespace cap

// A compile target: the files kernels/*/<target>.cc share the flags that CMakeLists.txt lists for
// it. `needs` is what those flags let the compiler use.
struct CompileTarget {
  const char* name;
  Capabilities needs;
};

namespace targets {
constexpr CompileTarget scalar{"scalar", cap::none};
constexpr CompileTarget avx2{"avx2", cap::avx2};
constexpr CompileTarget avx512{"avx512", cap::avx512};
constexpr CompileTarget avx512_vnni{"avx512_vnni", cap::vnni};
constexpr CompileTarget avx512_vbmi2{"avx512_vbmi2", cap::vnni | cap::vbmi2};
constexpr CompileTarget avx512_bf16{"avx512_bf16", cap::bf16};
constexpr CompileTarget avx512_fp16{"avx512_fp16", cap::fp16};
constexpr CompileTarget avx512_amx{"avx512_amx",
                                   cap::vnni | cap::vbmi2 | cap::amx_int8 | cap::amx_bf16};
}  // namespace targets

}  // namespace se
