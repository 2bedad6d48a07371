// Panels of float16, for AVX-512: every token is divided by a power of two above its magnitudes.

namespace se {
namespace SE_TARGET {

// Inf and NaN as zero: they have no part in a power, and no power changes them.
inline vf finite_magnitude(vf a) {
  const vf magnitude = abs(a), infinity = set1(__builtin_inff());
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(magnitude, infinity, _CMP_LT_OQ), magnitude);
}

// The powers of two above `maxima`, at most 2^127 and at least 2^-126.
inline vf powers_above(vf maxima) {
  const vf above = add(_mm512_getexp_ps(maxima), set1(1.0f));  // of zero: -Inf
  return _mm512_scalef_ps(set1(1.0f), at_least(set1(-126.0f), at_most(set1(127.0f), above)));
}

inline void store_halves(uint16_t* to, vf a, vf powers) {
  const vf scaled = _mm512_scalef_ps(a, sub(zero(), _mm512_getexp_ps(powers)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_cvtps_ph(scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

}  // namespace SE_TARGET
}  // namespace se
