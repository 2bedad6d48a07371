#include "layers/recurrent.h"

#include <omp.h>

#include <algorithm>

#include "layers/steps_on_panels.h"
#include "layers/steps_on_rows.h"

namespace se {
namespace {

// Most sequences whose hidden product is faster on rows than on panels: of Strips, and of others.
constexpr int64_t kStripsRowSequences = 16, kRowSequences = kRowTokens;

thread_local Workspace shared_memory, thread_memory, second_memory;

// One time step of one direction: hidden product, cells, projection.
template <class Steps>
void run_step(const Steps& direction, int64_t k, const TeamThread& thread, float* scratch) {
  direction.multiply_hidden(
      k, thread, scratch, [&](int64_t panel, int64_t row, int64_t rows, const float* sums) {
        direction.update_units(k, panel, row, rows, sums, direction.inputs(k, panel, row),
                               direction.inputs_stride());
      });
  if (direction.has_projection()) {
    thread.barrier.wait();
    direction.multiply_projection(k, thread, scratch,
                                  [&](int64_t panel, int64_t row, int64_t rows, const float* sums) {
                                    direction.store_projected(k, panel, row, rows, sums);
                                  });
  }
  thread.barrier.wait();
}

template <class Steps>
void run_layer(const RecurrentNetwork& network, const std::vector<RecurrentLinears>& layer,
               const TimeSteps& steps, const std::vector<DirectionArrays>& arrays,
               Capabilities caps) {
  std::vector<Steps> directions;
  for (size_t d = 0; d < arrays.size(); ++d)
    directions.emplace_back(network, layer[d], steps, arrays[d], d == 1, caps);
  const int64_t count = steps.count(),
                per_projection = std::min(count, Steps::per_projection(steps));
  Arena measured{nullptr};
  for (Steps& d : directions) d.allocate(measured, per_projection);
  Arena arena{shared_memory.get<float>(measured.used)};
  int64_t scratch = 0, work = 0;
  for (Steps& d : directions) {
    d.allocate(arena, per_projection);
    d.load_initial_states();
    scratch = std::max(scratch, rounded(d.scratch_floats()));
    work += d.step_work();
  }
  const int threads = threads_for(work);
  float* memory = thread_memory.get<float>(threads * scratch);
  SpinBarrier barriers[2];
  for (int64_t k0 = 0; k0 < count; k0 += per_projection) {
    const int64_t k1 = std::min(count, k0 + per_projection);
    for (Steps& d : directions) d.project_inputs(k0, k1);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      // The directions are independent: each has a team of threads. A single thread runs one after
      // the other.
      const int64_t thread = omp_get_thread_num(), all = omp_get_num_threads();
      const int64_t teams = std::min(all, static_cast<int64_t>(directions.size()));
      const auto first = [&](int64_t team) { return ceil_div(all * team, teams); };
#pragma omp single
      for (int64_t team = 0; team < teams; ++team)
        barriers[team].expect(first(team + 1) - first(team));
      const int64_t team = thread * teams / all;
      const TeamThread position{thread - first(team), first(team + 1) - first(team),
                                barriers[team]};
      for (size_t d = team; d < directions.size(); d += teams)
        for (int64_t k = k0; k < k1; ++k)
          run_step(directions[d], k, position, memory + thread * scratch);
    }
  }
  for (const Steps& d : directions) d.store_final_states();
}

}  // namespace

RecurrentPath recurrent_path(int64_t sequences, int64_t tokens, bool tall_blocks) {
  if (sequences > (tall_blocks ? kStripsRowSequences : kRowSequences)) return RecurrentPath::panels;
  return tokens > kRowTokens ? RecurrentPath::rows : RecurrentPath::few_tokens;
}

void run(const RecurrentNetwork& network, const SequenceBatch& batch, Capabilities caps) {
  if (batch.batch_sizes.empty() || batch.batch_sizes[0] == 0) return;
  const TimeSteps steps(batch.batch_sizes);
  const int64_t features = network.directions * network.output_size;
  const int64_t layers = static_cast<int64_t>(network.layers.size());
  // A single direction may overwrite its input. Of two, the second still reads what the first would
  // overwrite, so layers alternate between two buffers.
  const bool alternates = network.directions == 2 && layers > 1;
  float* second = alternates ? second_memory.get<float>(steps.tokens() * features) : batch.y;
  const float* x = batch.x;
  int64_t input_size = network.input_size;
  for (int64_t i = 0; i < layers; ++i) {
    float* y = (layers - 1 - i) % 2 ? second : batch.y;
    std::vector<DirectionArrays> arrays;
    for (int64_t d = 0; d < network.directions; ++d) {
      const int64_t first = (i * network.directions + d) * steps.sequences();
      const int64_t h = first * network.output_size, c = first * network.hidden_size;
      arrays.push_back({x, input_size, y + d * network.output_size, features,
                        batch.h0 ? batch.h0 + h : nullptr, batch.c0 ? batch.c0 + c : nullptr,
                        batch.hn + h, batch.cn ? batch.cn + c : nullptr});
    }
    if (network.path == RecurrentPath::panels)
      run_layer<StepsOnPanels>(network, network.layers[i], steps, arrays, caps);
    else
      run_layer<StepsOnRows>(network, network.layers[i], steps, arrays, caps);
    x = y;
    input_size = features;
  }
}

}  // namespace se
