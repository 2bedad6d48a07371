// A packed weight that owns its buffers, made from a dense matrix: for kernel_main and the tests.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/linear.h"

namespace se {

// Row-major floats [out][in].
struct DenseMatrix {
  int64_t out, in;
  std::vector<float> values;
  float at(int64_t r, int64_t k) const { return values[r * in + k]; }
};

struct PackOptions {
  int64_t height = 4;        // rows of a strip or of a band of columns
  int64_t keep = 2, of = 4;  // groups
};

// Normal values, of which `sparsity` are zero at random. For "strips" and "columns" whole columns
// of options.height rows are zero together, for "groups" all but the first options.keep non-zeros
// of each options.of columns. Values are rounded to bf16, so that no dtype but int8 changes them.
DenseMatrix random_matrix(const std::string& packing, int64_t out, int64_t in, double sparsity,
                          uint32_t seed, const PackOptions& options = {});

class PackedMatrix {
 public:
  // packing: "runs", "strips", "sellp", "bits", "groups", "tiles" or "columns". int8 is quantised
  // with one scale a row. Throws std::invalid_argument for a packing or dtype that does not exist.
  PackedMatrix(const std::string& packing, const DenseMatrix& dense, DType dtype,
               const PackOptions& options = {});
  PackedMatrix(const PackedMatrix&) = delete;  // the view points into the buffers

  const PackedWeight& view() const { return view_; }
  // The matrix that the buffers hold: `dense`, or for int8 the integers times their scales.
  const DenseMatrix& held() const { return held_; }

 private:
  template <class T>
  const T* keep(std::vector<T> buffer);

  DenseMatrix held_;
  std::vector<std::vector<uint64_t>> buffers_;
  PackedWeight view_;
};

}  // namespace se
