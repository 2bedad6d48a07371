// What every table of kernels shares: choosing a row, and listing the rows. Common code only.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "core/types.h"

namespace se {

struct KernelInfo {
  std::string name, op, packing;
  DType weight;
  Isa isa;
};

// Rows are ordered best first, so the first one that `isa` covers is the choice.
template <class Row, size_t N>
const Row& first_that_fits(const Row (&table)[N], DType weight, Isa isa) {
  for (const Row& row : table)
    if (row.weight == weight && row.isa <= isa) return row;
  throw std::logic_error("a table of kernels lacks its scalar row");
}

// For tables with one row an ISA.
template <class Row, size_t N>
const Row& first_that_fits(const Row (&table)[N], Isa isa) {
  for (const Row& row : table)
    if (row.isa <= isa) return row;
  throw std::logic_error("a table of kernels lacks its scalar row");
}

template <class Row, size_t N>
void list_table(const Row (&table)[N], const char* op, const char* packing,
                std::vector<KernelInfo>& out) {
  for (const Row& row : table) out.push_back({row.name, op, packing, row.weight, row.isa});
}

void list_spmm_runs(std::vector<KernelInfo>& out);
void list_spmv_bits(std::vector<KernelInfo>& out);
void list_spmv_groups(std::vector<KernelInfo>& out);
void list_spmv_sellp(std::vector<KernelInfo>& out);
void list_spmm_strips(std::vector<KernelInfo>& out);
void list_spmv_strips(std::vector<KernelInfo>& out);

}  // namespace se
