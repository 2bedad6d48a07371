#include "kernels/table.h"

#include "kernels/spmm_strips/kernel.h"

namespace se {
namespace {

constexpr SpmmStripsKernel kTable[] = {
#define SE_SPMM_STRIPS(weight, target, panel, min_tokens)                                        \
  {"spmm_strips_" #weight "_" #target, DType::weight, targets::target, Panel::panel, min_tokens, \
   spmm_strips_##weight##_##target},
#include "kernels/spmm_strips/kernels.inc"
#undef SE_SPMM_STRIPS
};

}  // namespace

const SpmmStripsKernel& spmm_strips(DType weight, Capabilities caps) {
  return best_row(kTable, weight, caps);
}

void list_spmm_strips(std::vector<KernelInfo>& out) {
  list_table(kTable, "spmm", Strips::kPacking, out);
}

}  // namespace se
