#include "kernels/table.h"

#include "kernels/spmv_tiles/kernel.h"

namespace se {
namespace {

constexpr SpmvTilesKernel kTable[] = {
#define SE_SPMV_TILES(weight, target)                                 \
  {"spmv_tiles_" #weight "_" #target, DType::weight, targets::target, \
   prepare_tiles_##weight##_##target, spmv_tiles_##weight##_##target},
#include "kernels/spmv_tiles/kernels.inc"
#undef SE_SPMV_TILES
};

}  // namespace

const SpmvTilesKernel& spmv_tiles(DType weight, Capabilities caps) {
  return best_row(kTable, weight, caps);
}

void list_spmv_tiles(std::vector<KernelInfo>& out) {
  list_table(kTable, "spmv", Tiles::kPacking, out);
}

}  // namespace se
