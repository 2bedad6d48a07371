#include "kernels/table.h"

#include "kernels/spmm_columns/kernel.h"

namespace se {
namespace {

constexpr SpmmColumnsKernel kTable[] = {
#define SE_SPMM_COLUMNS(weight, target, panel, min_tokens)                                        \
  {"spmm_columns_" #weight "_" #target, DType::weight, targets::target, Panel::panel, min_tokens, \
   spmm_columns_##weight##_##target},
#include "kernels/spmm_columns/kernels.inc"
#undef SE_SPMM_COLUMNS
};

}  // namespace

const SpmmColumnsKernel& spmm_columns(DType weight, Capabilities caps) {
  return best_row(kTable, weight, caps);
}

void list_spmm_columns(std::vector<KernelInfo>& out) {
  list_table(kTable, "spmm", Columns::kPacking, out);
}

}  // namespace se
