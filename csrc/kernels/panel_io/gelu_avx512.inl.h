// x Phi(x) by a table of polynomials, which permutations of 16 lanes look up: fewer instructions
// than a formula for erf takes.

namespace se {
namespace SE_TARGET {

// Phi(z) - 1/2 around z = 0.375 k, as c0[k] + c1[k] t + .. + c4[k] t^4 for t = z / 0.375 - k: the
// least squares at 64 Chebyshev points of |t| <= 1/2 (numpy's Chebyshev.fit). The last entry is the
// limit. Absolute error below 1.6e-7.
alignas(64) constexpr float kNormal[5][16] = {
    {0.0f, 0.146169767f, 0.27337265f, 0.369705468f, 0.43319279f, 0.469603628f, 0.487775534f,
     0.495667547f, 0.498650104f, 0.499630928f, 0.499911577f, 0.499981463f, 0.499996603f,
     0.499999464f, 0.499999911f, 0.5f},
    {0.149601921f, 0.139444694f, 0.112926558f, 0.079454504f, 0.0485699438f, 0.0257953294f,
     0.0119024385f, 0.00477142958f, 0.00166178332f, 0.000502815295f, 0.000132173634f,
     3.01840028e-05f, 5.98820907e-06f, 1.03204047e-06f, 1.54513685e-07f, 0.0f},
    {0.0f, -0.00980451703f, -0.015879998f, -0.0167596471f, -0.0136601226f, -0.00906863902f,
     -0.00502140867f, -0.00234853546f, -0.000934832438f, -0.000318234932f, -9.29566158e-05f,
     -2.33537903e-05f, -5.05516573e-06f, -9.44032649e-07f, -1.52249513e-07f, 0.0f},
    {-0.00348331686f, -0.00279308879f, -0.00115824968f, 0.000482475356f, 0.00140936999f,
     0.00151324796f, 0.00113218953f, 0.000660995778f, 0.000314174715f, 0.00012414479f,
     4.12755362e-05f, 1.16350893e-05f, 2.79510778e-06f, 5.74345336e-07f, 1.01221325e-07f, 0.0f},
    {0.0f, 0.0003258051f, 0.000450454158f, 0.000339276274f, 0.000120737539f, -5.33463608e-05f,
     -0.000120332144f, -0.000106763393f, -6.58448334e-05f, -3.14945755e-05f, -1.21905841e-05f,
     -3.90160358e-06f, -1.04565345e-06f, -2.36595781e-07f, -4.54513795e-08f, 0.0f}};

inline vf gelu(vf x) {
  const vf scaled = at_most(set1(15.0f), mul(abs(x), set1(1 / 0.375f)));
  // Adding 1.5 x 2^23 rounds to an integer, which the low bits hold.
  const vf magic = set1(12582912.0f), rounded = add(scaled, magic);
  const __m512i k = _mm512_castps_si512(rounded);
  const vf t = sub(scaled, sub(rounded, magic));
  const auto coefficients = [&](int i) { return _mm512_permutexvar_ps(k, load(kNormal[i])); };
  vf p = coefficients(4);
  SE_UNROLL
  for (int i = 3; i >= 0; --i) p = fmadd(p, t, coefficients(i));
  return mul(x, add(set1(0.5f), copy_sign(p, x)));
}

}  // namespace SE_TARGET
}  // namespace se
