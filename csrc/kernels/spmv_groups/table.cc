#include "kernels/table.h"

#include "kernels/spmv_groups/kernel.h"

namespace se {
namespace {

constexpr SpmvGroupsKernel kTable[] = {
#define SE_SPMV_GROUPS(weight, isa) \
  {"spmv_groups_" #weight "_" #isa, DType::weight, Isa::isa, spmv_groups_##weight##_##isa},
#include "kernels/spmv_groups/kernels.inc"
#undef SE_SPMV_GROUPS
};

}  // namespace

const SpmvGroupsKernel& spmv_groups(DType weight, Isa isa) {
  return first_that_fits(kTable, weight, isa);
}

void list_spmv_groups(std::vector<KernelInfo>& out) { list_table(kTable, "spmv", "groups", out); }

}  // namespace se
