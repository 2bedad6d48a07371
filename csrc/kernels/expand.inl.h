// Expansion of packed words and bytes to the positions of a mask, with VBMI2.

namespace se {
namespace SE_TARGET {

// On Zen 4 and 5, vpexpand with zero-masking depends on the old contents of its destination;
// merging into a zeroed register does not. Compilers turn the intrinsics for the latter into the
// former.
inline __m512i expand_words(__mmask32 bits, __m512i packed) {
  __m512i r = _mm512_setzero_si512();
  asm("vpexpandw %1, %0%{%2%}" : "+v"(r) : "v"(packed), "Yk"(bits));
  return r;
}
inline __m512i expand_bytes(__mmask64 bits, __m512i packed) {
  __m512i r = _mm512_setzero_si512();
  asm("vpexpandb %1, %0%{%2%}" : "+v"(r) : "v"(packed), "Yk"(bits));
  return r;
}

}  // namespace SE_TARGET
}  // namespace se
