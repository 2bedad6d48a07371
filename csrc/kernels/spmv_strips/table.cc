#include "kernels/table.h"

#include "kernels/spmv_strips/kernel.h"

namespace se {
namespace {

constexpr SpmvStripsKernel kTable[] = {
#define SE_SPMV_STRIPS(weight, target)                                 \
  {"spmv_strips_" #weight "_" #target, DType::weight, targets::target, \
   spmv_strips_##weight##_##target},
#include "kernels/spmv_strips/kernels.inc"
#undef SE_SPMV_STRIPS
};

}  // namespace

const SpmvStripsKernel& spmv_strips(DType weight, Capabilities caps) {
  return best_row(kTable, weight, caps);
}

void list_spmv_strips(std::vector<KernelInfo>& out) {
  list_table(kTable, "spmv", Strips::kPacking, out);
}

}  // namespace se
