// Every kernel of `linear` that this machine supports, against sums in double.
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "core/cpu.h"
#include "ops/linear.h"
#include "tests/check.h"
#include "tools/packed_matrix.h"

namespace se {
namespace {

// The largest |y - truth| over the largest |truth|.
double relative_error(const DenseMatrix& w, const std::vector<float>& x,
                      const std::vector<float>& y) {
  const int64_t tokens = static_cast<int64_t>(x.size()) / w.in;
  double worst = 0, largest = 0;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t r = 0; r < w.out; ++r) {
      double truth = 0;
      for (int64_t k = 0; k < w.in; ++k) truth += double{w.at(r, k)} * x[t * w.in + k];
      if (!std::isfinite(y[t * w.out + r])) return INFINITY;
      worst = std::max(worst, std::fabs(truth - y[t * w.out + r]));
      largest = std::max(largest, std::fabs(truth));
    }
  return largest > 0 ? worst / largest : worst;
}

void test_linear(const std::string& packing, DType dtype, const PackOptions& options,
                 Capabilities caps) {
  for (const double sparsity : {0.0, 0.5, 0.95})
    for (const int64_t tokens : {1, 5, 9, 70}) {
      const int64_t out = 61, in = 197;
      const DenseMatrix dense = random_matrix(packing, out, in, sparsity, 3, options);
      const PackedMatrix weight(packing, dense, dtype, options);
      std::mt19937 engine(4);
      std::normal_distribution<float> normal;
      std::vector<float> x(tokens * in), y(tokens * out, NAN);
      for (float& value : x) value = normal(engine);
      Epilogue epilogue{};
      epilogue.dtype = DType::f32;
      epilogue.y = y.data();
      epilogue.y_stride = out;
      const Activations activations{x.data(), DType::f32, in, tokens, in};
      std::visit([&](const auto& w) { linear(w, activations, epilogue, caps); }, weight.view());
      // int8 packings of runs, bits and tiles round the activations to int8, bf16 products to bf16.
      const std::string kernel = linear_kernel(weight.view(), tokens, caps);
      const bool quantises = dtype == DType::i8 && packing != "sellp" && packing != "groups";
      const bool rounds = kernel == "spmm_strips_bf16_avx512_bf16" ||
                          kernel == "spmm_columns_bf16_avx512_amx" ||
                          (dtype == DType::bf16 && packing == "tiles" && tokens > 4);
      const double error = relative_error(weight.held(), x, y);
      const double bound = quantises ? 0.03 : rounds ? 0.02 : 1e-5;
      if (!(error <= bound))
        std::fprintf(stderr, "%s, %lld tokens: error %g\n", kernel.c_str(),
                     static_cast<long long>(tokens), error);
      CHECK(error <= bound);
    }
}

}  // namespace
}  // namespace se

int main() {
  using namespace se;
  for (const Preset& preset : presets()) {
    const Capabilities caps = preset.capabilities;
    if (!detected_capabilities().covers(caps)) continue;
    for (const DType dtype : {DType::f32, DType::bf16, DType::i8}) {
      for (const char* packing : {"runs", "sellp", "bits", "tiles"})
        test_linear(packing, dtype, {}, caps);
      for (const int64_t of : {4, 8}) test_linear("groups", dtype, {1, 2, of}, caps);
    }
    for (const DType dtype : {DType::f32, DType::bf16})
      for (const int64_t height : {1, 4, 7}) test_linear("strips", dtype, {height, 2, 4}, caps);
    for (const int64_t height : {4, 16, 32})
      test_linear("columns", DType::bf16, {height, 2, 4}, caps);
  }
}
