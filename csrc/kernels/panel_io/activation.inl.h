// Activation functions over the vector layer. Absolute error below 3e-7 for inputs of order one.
#ifdef __AVX512F__
#include "kernels/panel_io/gelu_avx512.inl.h"
#endif

namespace se {
namespace SE_TARGET {

// e^x by range reduction to [-ln2/2, ln2/2] and a polynomial of degree 6 (Cephes expf).
inline vf exponential(vf x) {
  x = at_most(set1(88.0f), at_least(set1(-87.0f), x));
  const vf n = round_even(mul(x, set1(1.44269504f)));
  vf r = fmadd(n, set1(-0.693359375f), x);
  r = fmadd(n, set1(2.12194440e-4f), r);
  vf p = set1(1.9875691500e-4f);
  p = fmadd(p, r, set1(1.3981999507e-3f));
  p = fmadd(p, r, set1(8.3334519073e-3f));
  p = fmadd(p, r, set1(4.1665795894e-2f));
  p = fmadd(p, r, set1(1.6666665459e-1f));
  p = fmadd(p, r, set1(5.0000001201e-1f));
  p = fmadd(p, mul(r, r), add(r, set1(1.0f)));
  return scale_by_power(p, n);
}

inline vf sigmoid(vf x) { return inverse(add(set1(1.0f), exponential(sub(zero(), x)))); }

#ifndef __AVX512F__  // gelu_avx512.inl.h has another one
// x * Phi(x); the tail of the error function is Abramowitz and Stegun 7.1.26 (error 1.5e-7).
inline vf gelu(vf x) {
  const vf z = mul(abs(x), set1(0.70710678f));
  const vf t = inverse(fmadd(set1(0.3275911f), z, set1(1.0f)));
  vf p = set1(1.061405429f);
  p = fmadd(p, t, set1(-1.453152027f));
  p = fmadd(p, t, set1(1.421413741f));
  p = fmadd(p, t, set1(-0.284496736f));
  p = fmadd(p, t, set1(0.254829592f));
  const vf tail = mul(mul(p, t), exponential(sub(zero(), mul(z, z))));
  const vf half = set1(0.5f);
  return mul(x, add(half, copy_sign(fmadd(tail, set1(-0.5f), half), x)));
}
#endif

// 0.5 x (1 + tanh u) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3).
inline vf gelu_tanh(vf x) {
  const vf u = mul(x, fmadd(mul(x, x), set1(0.0713548163f), set1(1.5957691216f)));
  return mul(x, sigmoid(u));
}

// cap tanh(x / cap) = cap (2 sigmoid(2 x / cap) - 1).
inline vf soft_capped(vf x, float cap) {
  return mul(set1(cap), fmadd(set1(2.0f), sigmoid(mul(x, set1(2.0f / cap))), set1(-1.0f)));
}

inline vf activate(Activation activation, vf x) {
  switch (activation) {
    case Activation::relu:
      return at_least(zero(), x);
    case Activation::gelu:
      return gelu(x);
    case Activation::gelu_tanh:
      return gelu_tanh(x);
    case Activation::silu:
      return mul(x, sigmoid(x));
    case Activation::none:
      break;
  }
  return x;
}

}  // namespace SE_TARGET
}  // namespace se
