// Recurrent networks over whole sequences in one call: layers, directions, sequences of different
// length.
#pragma once

#include <vector>

#include "layers/layer_linear.h"
#include "kernels/recurrent_cell/kernel.h"
#include "ops/workspace.h"

namespace se {

// One direction of a layer. Rows of input and hidden weights are interleaved, so that a thread that
// owns 16 units owns all of their gates:
//
//   row = (unit / 16 * gates + gate) * 16 + unit % 16      units are padded to whole blocks
//
struct RecurrentLinears {
  LayerLinear input;    // [rows, in] of the first layer, [rows, directions * out] of the others
  LayerLinear hidden;   // [rows, out]
  LayerLinear project;  // [out, units] with a projection of the LSTM (Sak et al. 2014), else empty
};

// Whether every weight that single steps need can multiply rows; whether all can multiply panels.
bool takes_rows(const RecurrentLinears& linears);
bool takes_panels(const RecurrentLinears& linears);

struct Recurrent {
  Cell cell;
  int64_t units;  // without padding
  int64_t out;    // features of h: units, or what they are projected to
  int64_t in;     // of the first layer
  int64_t directions;
  std::vector<std::vector<RecurrentLinears>> layers;  // [layer][direction]

  int64_t blocks() const { return ceil_div(units, 16); }
  int64_t block_rows() const { return 16 * gates_of(cell); }
  int64_t rows() const { return blocks() * block_rows(); }
};

// Steps one after another, each the sequences that are still running, longest first: what torch
// calls a PackedSequence. The second direction begins at the end of each sequence.
struct Sequences {
  const float* x;              // [sum of sizes][in]
  std::vector<int64_t> sizes;  // sequences of each step, not increasing
  float* y;                    // [sum of sizes][directions * out], not x
  // [layers * directions][sequences][out], and [units] for c; null for zeros.
  const float *h0, *c0;
  float *hn, *cn;  // the same at the end of each sequence; cn of the LSTM only
};

// Up to kRowTokens sequences, or any number if hidden weights multiply rows only, run on rows, else
// on panels with a sequence in each lane. Input projections are hoisted: of as many steps at once
// as make a good product, so that memory beyond x and y does not grow with the steps (but for a
// second y where a network of two directions has several layers). Each thread has the same share of
// the hidden weights at every step, and the threads meet once a step (SELL-P: twice, since its rows
// are in no order). The result does not depend on the number of threads.
void run(const Recurrent& network, const Sequences& sequences, Capabilities caps);

}  // namespace se
