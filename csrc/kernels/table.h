// Choosing and listing the rows of a table of kernels. For common code only.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "core/capabilities.h"
#include "core/types.h"

namespace se {

struct KernelInfo {
  std::string name, op, packing;
  DType weight;
  CompileTarget target;
};

// The first row whose needs `caps` covers; rows are ordered best first. For tables with one row
// per target.
template <class Row, size_t N>
const Row& best_row(const Row (&table)[N], Capabilities caps) {
  for (const Row& row : table)
    if (caps.covers(row.target.needs)) return row;
  throw std::logic_error("a table of kernels lacks its scalar row");
}

// The same among the rows for `weight`. Throws std::invalid_argument if there are none.
template <class Row, size_t N>
const Row& best_row(const Row (&table)[N], DType weight, Capabilities caps) {
  for (const Row& row : table)
    if (row.weight == weight && caps.covers(row.target.needs)) return row;
  throw std::invalid_argument("no kernel for this packing and dtype");
}

template <class Row, size_t N>
void list_table(const Row (&table)[N], const char* op, const char* packing,
                std::vector<KernelInfo>& out) {
  for (const Row& row : table) out.push_back({row.name, op, packing, row.weight, row.target});
}

void list_spmm_columns(std::vector<KernelInfo>& out);
void list_spmm_half_runs(std::vector<KernelInfo>& out);
void list_spmm_runs(std::vector<KernelInfo>& out);
void list_spmv_bits(std::vector<KernelInfo>& out);
void list_spmv_groups(std::vector<KernelInfo>& out);
void list_spmv_sellp(std::vector<KernelInfo>& out);
void list_spmm_strips(std::vector<KernelInfo>& out);
void list_spmv_strips(std::vector<KernelInfo>& out);
void list_spmm_tiles(std::vector<KernelInfo>& out);
void list_spmv_tiles(std::vector<KernelInfo>& out);

}  // namespace se
