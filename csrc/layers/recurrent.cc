#include "layers/recurrent.h"

#include <omp.h>

#include <algorithm>

#include "layers/steps_on_panels.h"
#include "layers/steps_on_rows.h"

namespace se {
namespace {

thread_local Workspace shared_memory, thread_memory, second_memory;

template <class Kind>
void run_layer(const Recurrent& network, const std::vector<RecurrentLinears>& layer,
               const Steps& steps, const std::vector<Flow>& flows, Capabilities caps) {
  std::vector<Kind> directions;
  for (size_t d = 0; d < flows.size(); ++d)
    directions.emplace_back(network, layer[d], steps, flows[d], d == 1, caps);
  const int64_t count = steps.count(), hoist = std::min(count, Kind::hoist(steps));
  Arena measured{nullptr};
  for (Kind& d : directions) d.lay_out(measured, hoist);
  Arena arena{shared_memory.get<float>(measured.used)};
  int64_t own = 0, work = 0;
  for (Kind& d : directions) {
    d.lay_out(arena, hoist);
    d.begin();
    own = std::max(own, rounded(d.own_floats()));
    work += d.work();
  }
  const int threads = threads_for(work);
  float* memory = thread_memory.get<float>(threads * own);
  SpinBarrier barriers[2];
  for (int64_t k0 = 0; k0 < count; k0 += hoist) {
    const int64_t k1 = std::min(count, k0 + hoist);
    for (Kind& d : directions) d.project(k0, k1);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      // Threads are split between the directions, which need nothing of each other; a single thread
      // takes one after the other.
      const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
      const int64_t teams = std::min(all, static_cast<int64_t>(directions.size()));
      const auto first = [&](int64_t team) { return ceil_div(all * team, teams); };
#pragma omp single
      for (int64_t team = 0; team < teams; ++team)
        barriers[team].expect(first(team + 1) - first(team));
      const int64_t team = me * teams / all;
      const Worker mine{me - first(team), first(team + 1) - first(team), barriers[team]};
      for (size_t d = team; d < directions.size(); d += teams)
        for (int64_t k = k0; k < k1; ++k) directions[d].step(k, mine, memory + me * own);
    }
  }
  for (const Kind& d : directions) d.end();
}

template <class F>
bool all(const std::vector<RecurrentLinears>& layer, F f) {
  return std::all_of(layer.begin(), layer.end(), f);
}

}  // namespace

bool takes_rows(const RecurrentLinears& l) {
  return l.hidden.rows && (!l.project || l.project.rows);
}

bool takes_panels(const RecurrentLinears& l) {
  return l.input.panels && l.hidden.panels && (!l.project || l.project.panels);
}

void run(const Recurrent& network, const Sequences& s, Capabilities caps) {
  if (s.sizes.empty() || s.sizes[0] == 0) return;
  const Steps steps(s.sizes);
  const int64_t tokens = steps.offsets.back(), batch = steps.sequences();
  const int64_t features = network.directions * network.out;
  const int64_t layers = static_cast<int64_t>(network.layers.size());
  // One direction may write where it has read; of two, the second still reads what the first wrote.
  const bool alternates = network.directions == 2 && layers > 1;
  float* second = alternates ? second_memory.get<float>(tokens * features) : s.y;
  const float* x = s.x;
  int64_t in = network.in;
  for (int64_t i = 0; i < layers; ++i) {
    const auto& layer = network.layers[i];
    float* y = (layers - 1 - i) % 2 ? second : s.y;
    std::vector<Flow> flows;
    for (int64_t d = 0; d < network.directions; ++d) {
      const int64_t h = (i * network.directions + d) * batch;
      flows.push_back({x, in, y + d * network.out, features,
                       s.h0 ? s.h0 + h * network.out : nullptr,
                       s.c0 ? s.c0 + h * network.units : nullptr, s.hn + h * network.out,
                       s.cn ? s.cn + h * network.units : nullptr});
    }
    if (all(layer, takes_rows) && (batch <= kRowTokens || !all(layer, takes_panels)))
      run_layer<StepsOnRows>(network, layer, steps, flows, caps);
    else
      run_layer<StepsOnPanels>(network, layer, steps, flows, caps);
    x = y;
    in = features;
  }
}

}  // namespace se
