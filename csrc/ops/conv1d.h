// conv1d: convolution over time on channels-first activations, by the products of panels.
#pragma once

#include "ops/linear.h"

namespace se {

// y[b][o][t] = act(sum over c, i of W[o, c kernel + i] x[b][c][t stride + i dilation - left] +
// bias[o]), with zeros for what lies outside of x. Times are contiguous; the strides of sequences
// and channels count floats, so that x and y may be slices: the channels of a group.
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
