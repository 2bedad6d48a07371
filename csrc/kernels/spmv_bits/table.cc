#include "kernels/table.h"

#include "kernels/spmv_bits/kernel.h"

namespace se {
namespace {

constexpr SpmvBitsKernel kTable[] = {
#define SE_SPMV_BITS(weight, target)                                 \
  {"spmv_bits_" #weight "_" #target, DType::weight, targets::target, \
   prepare_bits_##weight##_##target, spmv_bits_##weight##_##target},
#include "kernels/spmv_bits/kernels.inc"
#undef SE_SPMV_BITS
};

}  // namespace

const SpmvBitsKernel& spmv_bits(DType weight, Capabilities caps) {
  return best_row(kTable, weight, caps);
}

void list_spmv_bits(std::vector<KernelInfo>& out) {
  list_table(kTable, "spmv", Bits::kPacking, out);
}

}  // namespace se
