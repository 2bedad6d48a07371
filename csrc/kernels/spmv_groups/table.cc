#include "kernels/table.h"

#include "kernels/spmv_groups/kernel.h"

namespace se {
namespace {

constexpr SpmvGroupsKernel kTable[] = {
#define SE_SPMV_GROUPS(weight, target)                                 \
  {"spmv_groups_" #weight "_" #target, DType::weight, targets::target, \
   spmv_groups_##weight##_##target},
#include "kernels/spmv_groups/kernels.inc"
#undef SE_SPMV_GROUPS
};

}  // namespace

const SpmvGroupsKernel& spmv_groups(DType weight, Capabilities caps) {
  return best_row(kTable, weight, caps);
}

void list_spmv_groups(std::vector<KernelInfo>& out) {
  list_table(kTable, "spmv", Groups::kPacking, out);
}

}  // namespace se
