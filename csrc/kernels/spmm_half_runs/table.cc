#include "kernels/table.h"

#include "kernels/spmm_half_runs/kernel.h"

namespace se {
namespace {

constexpr SpmmRunsKernel kTable[] = {
#define SE_SPMM_HALF_RUNS(weight, target, panel, max_tokens) \
  {                                                          \
      "spmm_half_runs_" #weight "_" #target,                 \
      DType::weight,                                         \
      targets::target,                                       \
      Panel::panel,                                          \
      max_tokens,                                            \
      spmm_half_runs_##weight##_##target},
#include "kernels/spmm_half_runs/kernels.inc"
#undef SE_SPMM_HALF_RUNS
};

}  // namespace

const SpmmRunsKernel& spmm_half_runs(DType weight, Capabilities caps) {
  return best_row(kTable, weight, caps);
}

void list_spmm_half_runs(std::vector<KernelInfo>& out) {
  list_table(kTable, "spmm", Runs::kHalfPacking, out);
}

}  // namespace se
