// conv1d: convolution over time on channels-first activations, as products with panels of windows.
#pragma once

#include "ops/linear.h"

namespace se {

// y[b][o][t] = act(sum over c, i of W[o, c kernel + i] x[b][c][t stride + i dilation - left] +
// bias[o]), where x is zero outside its length. Times are contiguous. The strides of sequences and
// channels count floats, so that x and y may be slices, e.g. the channels of one group.
struct Conv1d {
  const float* x;  // [batch][channels][length]
  int64_t batch, channels, length, x_sequence, x_channel;
  int64_t kernel, stride, dilation, left;
  float* y;  // [batch][out][steps]; must not overlap x
  int64_t steps, y_sequence, y_channel;
  const float* bias;  // [out], may be null
  Activation activation;
};

// W [out, channels x kernel]: runs and strips only. Threads as in `linear`.
void conv1d(const PackedWeight& w, const Conv1d& conv, Capabilities caps);

}  // namespace se
