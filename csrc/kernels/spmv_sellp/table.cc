#include "kernels/table.h"

#include "kernels/spmv_sellp/kernel.h"

namespace se {
namespace {

constexpr SpmvSellPKernel kTable[] = {
#define SE_SPMV_SELLP(weight, target)                                 \
  {"spmv_sellp_" #weight "_" #target, DType::weight, targets::target, \
   spmv_sellp_##weight##_##target},
#include "kernels/spmv_sellp/kernels.inc"
#undef SE_SPMV_SELLP
};

}  // namespace

const SpmvSellPKernel& spmv_sellp(DType weight, Capabilities caps) {
  return best_row(kTable, weight, caps);
}

void list_spmv_sellp(std::vector<KernelInfo>& out) {
  list_table(kTable, "spmv", SellP::kPacking, out);
}

}  // namespace se
