// A packed weight with its arrays: the class _core.Weight.
#pragma once

#include "bindings/arrays.h"
#include "ops/linear.h"

namespace se {

// The view of a packing's buffers, in the order of buffer_names in sparse_engine/packings/cpu,
// which must outlive it. Throws std::invalid_argument where dtypes or sizes do not fit.
PackedWeight view_of(const std::string& packing, const std::vector<py::array>& buffers,
                     const std::vector<int64_t>& params, int64_t out, int64_t in);

// A view of checked buffers, which a layer keeps between calls.
class Weight {
 public:
  Weight(const std::string& packing, std::vector<py::array> buffers,
         const std::vector<int64_t>& params, int64_t out, int64_t in);

  void linear(const py::array& x, py::array y, const std::optional<py::array_t<float>>& bias,
              const std::optional<py::array>& residual, int activation,
              const std::optional<std::string>& isa) const;

  void linear_on_panels(const py::array_t<float>& x, py::array_t<float> y,
                        const std::optional<py::array_t<float>>& bias, int activation,
                        const std::optional<std::string>& isa) const;
  // x [batch, channels, length] to y [batch, out, steps], with contiguous times.
  void conv1d(const py::array_t<float>& x, py::array_t<float> y, int64_t kernel, int64_t stride,
              int64_t dilation, int64_t left, const std::optional<py::array_t<float>>& bias,
              int activation, const std::optional<std::string>& isa) const;
  int64_t panel_width(int64_t tokens, const std::optional<std::string>& isa) const;

  int64_t in() const { return in_; }
  int64_t out() const { return out_; }
  const PackedWeight& view() const { return view_; }

 private:
  const std::vector<py::array> buffers_;  // outlive the view
  const int64_t in_, out_;
  const PackedWeight view_;
};

}  // namespace se
