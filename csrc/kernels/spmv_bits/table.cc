#include "kernels/table.h"

#include "kernels/spmv_bits/kernel.h"

namespace se {
namespace {

constexpr SpmvBitsKernel kTable[] = {
#define SE_SPMV_BITS(weight, isa)                                                         \
  {"spmv_bits_" #weight "_" #isa, DType::weight, Isa::isa, prepare_bits_##weight##_##isa, \
   spmv_bits_##weight##_##isa},
#include "kernels/spmv_bits/kernels.inc"
#undef SE_SPMV_BITS
};

}  // namespace

const SpmvBitsKernel& spmv_bits(DType weight, Isa isa) {
  return first_that_fits(kTable, weight, isa);
}

void list_spmv_bits(std::vector<KernelInfo>& out) { list_table(kTable, "spmv", "bits", out); }

}  // namespace se
