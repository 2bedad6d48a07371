// How kernels for a few tokens take a token: as floats or as bytes, with zeros up to whole 64
// inputs.

namespace se {
namespace SE_TARGET {

// max |x| / 127, or NaN if x holds an Inf or NaN.
inline float scale_of(const float* x, int64_t in) {
  float maximum = 0, nan = 0;  // 0 x Inf and 0 x NaN are NaN
  for (int64_t k = 0; k < in; ++k) {
    const float a = __builtin_fabsf(x[k]);
    maximum = a > maximum ? a : maximum;
    nan += a * 0.0f;
  }
  return maximum / 127.0f + nan;
}

inline int64_t padded(int64_t in) { return (in + 63) / 64 * 64; }

inline float copy_floats(const float* x, int64_t in, void* prepared) {
  float* to = static_cast<float*>(prepared);
  for (int64_t k = 0; k < padded(in); ++k) to[k] = k < in ? x[k] : 0.0f;
  return 1.0f;
}

// Bytes round(x / scale) + 128.
inline float quantize_bytes(const float* x, int64_t in, void* prepared) {
  uint8_t* to = static_cast<uint8_t*>(prepared);
  const float scale = scale_of(x, in), inverse = scale > 1.2e-38f ? 1.0f / scale : 0.0f;
  for (int64_t k = 0; k < padded(in); ++k)
    to[k] = static_cast<uint8_t>(static_cast<int>(__builtin_rintf(k < in ? x[k] * inverse : 0.0f)) +
                                 128);
  return scale;
}

}  // namespace SE_TARGET
}  // namespace se
