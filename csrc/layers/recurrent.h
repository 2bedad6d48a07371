// Recurrent networks over whole sequences in one call: LSTM, GRU and RNN layers, one or two
// directions, sequences of different lengths.
#pragma once

#include <vector>

#include "layers/layer_linear.h"
#include "kernels/recurrent_cell/kernel.h"
#include "ops/workspace.h"

namespace se {

// Units of a tile: as many as a vector of 16 floats holds. The gates of a tile are adjacent rows.
constexpr int64_t kUnitTile = 16;

// Which kind of packing each weight of a network has. Panels have one sequence in each lane.
enum class RecurrentPath : int {
  panels,      // many sequences: all weights multiply panels (Runs or Strips)
  rows,        // few sequences: the input weights multiply panels, the others rows
  few_tokens,  // few sequences and few tokens: all weights multiply rows (any packing but Runs)
};

// The fastest path for a call of `sequences` sequences with `tokens` tokens in all.
// tall_blocks: all hidden and projection weights are stored as Strips, whose row kernels serve
// twice as many sequences.
RecurrentPath recurrent_path(int64_t sequences, int64_t tokens, bool tall_blocks);

// A packed weight and its bias [out], or null for none.
struct RecurrentLinear {
  const PackedWeight* weight;
  const float* bias;
  explicit operator bool() const { return weight; }
};

// The weights of one direction of a layer. The rows of input and hidden weights are interleaved, so
// that the thread that computes a unit tile owns all its gates:
//
//   row = (unit / 16 * gates + gate) * 16 + unit % 16      units are padded to whole tiles
//
struct RecurrentLinears {
  RecurrentLinear input;       // [rows, input_size], or [rows, directions * output_size] above
  RecurrentLinear hidden;      // [rows, output_size]
  RecurrentLinear projection;  // [output_size, hidden_size] of an LSTM with projection
                               // (Sak et al. 2014), else empty
};

struct RecurrentNetwork {
  Cell cell;
  RecurrentPath path;
  int64_t input_size;   // of the first layer
  int64_t hidden_size;  // units of a layer, without padding
  int64_t output_size;  // features of h: hidden_size, or the rows of the projection
  int64_t directions;
  std::vector<std::vector<RecurrentLinears>> layers;  // [layer][direction]

  int64_t tiles() const { return ceil_div(hidden_size, kUnitTile); }
  int64_t tile_rows() const { return kUnitTile * gates_of(cell); }
  int64_t rows() const { return tiles() * tile_rows(); }
};

// Sequences in the order of torch's PackedSequence: time step by time step, longest sequence first.
// The backward direction starts at the end of each sequence. A token is one sequence's input at one
// time step. All arrays are row-major.
struct SequenceBatch {
  const float* x;                    // [tokens][input_size]
  std::vector<int64_t> batch_sizes;  // sequences of each time step, not increasing
  float* y;                          // [tokens][directions * output_size], not x
  // Initial states [layers * directions][sequences][output_size], c [..][hidden_size]; null for
  // zeros. Final states have the same shapes, c for an LSTM only. Both may be the same memory.
  const float *h0, *c0;
  float *hn, *cn;
};

// Runs the network on omp_get_max_threads() threads.
//
// The input projection is hoisted: one product serves many time steps, as many as make it
// efficient. Memory beyond x and y therefore does not grow with the number of steps, except for a
// second y where a bidirectional network has several layers. Each thread owns the same rows of the
// hidden weights at every time step, and the threads synchronise once per step. SELL-P, whose rows
// are sorted, needs two barriers. The result does not depend on the number of threads.
void run(const RecurrentNetwork& network, const SequenceBatch& batch, Capabilities caps);

}  // namespace se
