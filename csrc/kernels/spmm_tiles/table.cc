#include "kernels/table.h"

#include "kernels/spmm_tiles/kernel.h"

namespace se {
namespace {

constexpr SpmmTilesKernel kTable[] = {
#define SE_SPMM_TILES(weight, target, scratch) \
  {"spmm_tiles_" #weight "_" #target,          \
   DType::weight,                              \
   targets::target,                            \
   scratch,                                    \
   enter_tiles_##target,                       \
   leave_tiles_##target,                       \
   spmm_tiles_##weight##_##target},
#include "kernels/spmm_tiles/kernels.inc"
#undef SE_SPMM_TILES
};

}  // namespace

const SpmmTilesKernel& spmm_tiles(DType weight, Capabilities caps) {
  return best_row(kTable, weight, caps);
}

void list_spmm_tiles(std::vector<KernelInfo>& out) {
  list_table(kTable, "spmm", Tiles::kPacking, out);
}

}  // namespace se
