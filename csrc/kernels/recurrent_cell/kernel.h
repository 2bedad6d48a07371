// Recurrent cells: the elementwise part of a time step, after the products.
#pragma once

#include <cstdint>

#include "core/capabilities.h"
#include "core/types.h"

namespace se {

// Gates of a unit in torch's order, where s is the sigmoid:
//   tanh, relu  h = act(a)                                                     (Elman 1990)
//   lstm        i f g o:  c = s(f) c + s(i) tanh(g),  h = s(o) tanh(c)         (Hochreiter 1997)
//   gru         r z n:    n = tanh(n_x + s(r) n_h),   h = (1 - s(z)) n + s(z) h    (Cho 2014)
enum class Cell : int { tanh = 0, relu = 1, lstm = 2, gru = 3 };
constexpr int64_t gates_of(Cell cell) { return cell == Cell::lstm ? 4 : cell == Cell::gru ? 3 : 1; }

// Units come in tiles of 16, gate after gate: the sums of a tile hold all its gates. The lanes of a
// vector hold sequences, or the units of a single sequence (width 1).
struct CellStep {
  Cell cell;
  int64_t tiles;      // of 16 units
  int64_t width;      // lanes for sequences: 1, or a multiple of 16
  int64_t active;     // sequences that run this step: the first lanes; the others keep their state
  const float* sums;  // [tiles][gates][16][width]: W_hh h + b_hh
  const float* inputs;  // [tiles][gates][16][inputs_stride]: W_ih x + b_ih
  int64_t inputs_stride;
  float* c;        // [tiles * 16][width]: LSTM only, updated in place
  const float* h;  // [tiles * 16][width]: state before the step
  float* y;        // [tiles * 16][width]: state after the step; not h
};

struct RecurrentCellKernels {
  CompileTarget target;
  void (*step)(const CellStep& step);
};

// The first row of kernels.inc that `caps` covers.
const RecurrentCellKernels& recurrent_cell(Capabilities caps);

#define SE_RECURRENT_CELL(target) void step_cells_##target(const CellStep& step);
#include "kernels/recurrent_cell/kernels.inc"
#undef SE_RECURRENT_CELL

}  // namespace se
