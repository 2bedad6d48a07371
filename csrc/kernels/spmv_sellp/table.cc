#include "kernels/table.h"

#include "kernels/spmv_sellp/kernel.h"

namespace se {
namespace {

constexpr SpmvSellPKernel kTable[] = {
#define SE_SPMV_SELLP(weight, isa) \
  {"spmv_sellp_" #weight "_" #isa, DType::weight, Isa::isa, spmv_sellp_##weight##_##isa},
#include "kernels/spmv_sellp/kernels.inc"
#undef SE_SPMV_SELLP
};

}  // namespace

const SpmvSellPKernel& spmv_sellp(DType weight, Isa isa) {
  return first_that_fits(kTable, weight, isa);
}

void list_spmv_sellp(std::vector<KernelInfo>& out) { list_table(kTable, "spmv", "sellp", out); }

}  // namespace se
