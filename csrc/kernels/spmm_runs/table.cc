#include "kernels/table.h"

#include "kernels/spmm_runs/kernel.h"

namespace se {
namespace {

constexpr SpmmRunsKernel kTable[] = {
#define SE_SPMM_RUNS(weight, isa, panel, max_tokens)                                 \
  {"spmm_runs_" #weight "_" #isa, DType::weight, Isa::isa, DType::panel, max_tokens, \
   spmm_runs_##weight##_##isa},
#include "kernels/spmm_runs/kernels.inc"
#undef SE_SPMM_RUNS
};

}  // namespace

const SpmmRunsKernel& spmm_runs(DType weight, Isa isa) {
  return first_that_fits(kTable, weight, isa);
}

void list_spmm_runs(std::vector<KernelInfo>& out) { list_table(kTable, "spmm", "runs", out); }

}  // namespace se
