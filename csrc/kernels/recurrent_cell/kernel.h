// What recurrent cells do with the sums of their gates: element by element.
#pragma once

#include <cstdint>

#include "core/capabilities.h"
#include "core/types.h"

namespace se {

// gates of a unit, in torch's order:
//   tanh, relu  h = act(a)                                                     (Elman 1990)
//   lstm        i f g o:  c = s(f) c + s(i) tanh(g),  h = s(o) tanh(c)         (Hochreiter 1997)
//   gru         r z n:    n = tanh(n_x + s(r) n_h),   h = (1 - s(z)) n + s(z) h    (Cho 2014)
enum class Cell : int { tanh = 0, relu = 1, lstm = 2, gru = 3 };
constexpr int64_t gates_of(Cell cell) { return cell == Cell::lstm ? 4 : cell == Cell::gru ? 3 : 1; }

// Units come in blocks of 16, gate after gate, so that whoever has a block's sums has all of its
// gates. Sequences lie side by side where there are many; a single one has its units in the lanes.
struct CellStep {
  Cell cell;
  int64_t blocks;       // of 16 units
  int64_t width;        // sequences: 1, or a multiple of 16
  int64_t live;         // of them that take the step; the others keep their state
  const float* sums;    // [blocks][gates][16][width]: W_hh h + b_hh
  const float* inputs;  // [blocks][gates][16][inputs_stride]: W_ih x + b_ih
  int64_t inputs_stride;
  float* c;        // [blocks * 16][width]: lstm only
  const float* h;  // [blocks * 16][width], before
  float* y;        // and after; not h
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
