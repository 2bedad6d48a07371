// linear for a few tokens. Rows of W are divided among the threads in the same way at every call,
// so that each thread's weights stay in the cache of its core.
#include <omp.h>

#include <cstring>

#include "ops/linear.h"
#include "ops/spmv.h"

namespace se {
namespace {

thread_local Workspace prepared_memory, sums_memory, wide_memory;

const float* as_floats(const Activations& a, int64_t token) {
  if (a.dtype == DType::f32) return reinterpret_cast<const float*>(a.at(token, 0));
  float* wide = wide_memory.get<float>(a.features);
  const uint16_t* bits = reinterpret_cast<const uint16_t*>(a.at(token, 0));
  for (int64_t k = 0; k < a.features; ++k) {
    const uint32_t u = static_cast<uint32_t>(bits[k]) << 16;
    std::memcpy(wide + k, &u, 4);
  }
  return wide;
}

template <class Work>
void linear_few(const Work& work, const Activations& a, const Epilogue& epilogue,
                Capabilities caps) {
  const PanelIoKernels& panel = panel_io(caps);
  const int64_t out = work.w.out, x_stride = prepared_bytes(a.features);
  const int64_t y_stride = ceil_div(work.sums(), 16) * 16;
  char* x = prepared_memory.get<char>(kTokens * x_stride);
  float* sums = sums_memory.get<float>(kTokens * y_stride);
  for (int64_t t0 = 0; t0 < a.tokens; t0 += Work::kAtOnce) {
    const int64_t tokens = std::min(a.tokens - t0, Work::kAtOnce);
    float scales[kTokens];
    for (int64_t t = 0; t < tokens; ++t)
      scales[t] = work.prepare(as_floats(a, t0 + t), x + t * x_stride);
    const int threads = threads_for(work.work() * tokens);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      const int64_t i = omp_get_thread_num(), n = omp_get_num_threads();
      work.run(work.part(i, n), work.part(i + 1, n), x, x_stride, tokens, sums, y_stride);
#pragma omp barrier
      const int64_t row = out * i / n, end = out * (i + 1) / n;
      for (int64_t t = 0; t < tokens; ++t)
        panel.store_token(sums + t * y_stride + row, scales[t], row, end - row,
                          at_token(epilogue, t0 + t));
    }
  }
}

template <class W>
void linear_rows(const W& w, const Activations& x, Epilogue epilogue, Capabilities caps) {
  epilogue.row_scales = row_scales(w);
  if (x.tokens && w.out) linear_few(work_on_rows(w, caps), x, epilogue, caps);
}

}  // namespace

void linear(const SellP& w, const Activations& x, const Epilogue& epilogue, Capabilities caps) {
  linear_rows(w, x, epilogue, caps);
}

void linear(const Bits& w, const Activations& x, const Epilogue& epilogue, Capabilities caps) {
  linear_rows(w, x, epilogue, caps);
}

void linear(const Groups& w, const Activations& x, const Epilogue& epilogue, Capabilities caps) {
  linear_rows(w, x, epilogue, caps);
}

void linear_on_rows(const Strips& w, const Activations& x, const Epilogue& epilogue,
                    Capabilities caps) {
  linear_rows(w, x, epilogue, caps);
}

void linear_on_rows(const Tiles& w, const Activations& x, const Epilogue& epilogue,
                    Capabilities caps) {
  linear_rows(w, x, epilogue, caps);
}

}  // namespace se
