// Recurrent cells over the vector layer. Absolute error below 1e-6 for states of order one.

namespace se {
namespace SE_TARGET {

inline vf hyperbolic_tangent(vf x) {
  const vf e = exponential(mul(x, set1(-2.0f)));
  return div(sub(set1(1.0f), e), add(set1(1.0f), e));
}

// sigmoid(a) tanh(b) with one division. The bound on -2b keeps the product of the denominators
// finite; tanh is -1 to float precision there.
inline vf gated_tangent(vf a, vf b) {
  const vf one = set1(1.0f);
  const vf ea = exponential(sub(zero(), a));
  const vf eb = exponential(at_most(set1(30.0f), mul(b, set1(-2.0f))));
  return div(sub(one, eb), mul(add(one, ea), add(one, eb)));
}

// New values for the first `active` lanes, the old ones for the others.
inline void keep_inactive(const float* fresh, const float* old, int64_t active, float* to) {
  for (int64_t l = 0; l < kLanes; ++l) to[l] = l < active ? fresh[l] : old[l];
}

template <Cell kCell>
inline void step_of(const CellStep& s) {
  constexpr int64_t G = gates_of(kCell);
  // A vector holds 16 units of a single sequence, or one unit of many.
  const int64_t rows = s.width == 1 ? 1 : 16, columns = s.width == 1 ? 16 : s.width;
  const int64_t active = s.width == 1 ? 16 * s.active : s.active;
  const int64_t sum = 16 * s.width, input = 16 * s.inputs_stride;  // from gate to gate
  for (int64_t i = 0; i < s.tiles * rows; ++i) {
    const int64_t tile = i / rows, row = i % rows;
    for (int64_t t = 0; t < columns; t += kLanes) {
      const float* a = s.sums + tile * G * sum + row * s.width + t;
      const float* x = s.inputs + tile * G * input + row * s.inputs_stride + t;
      const int64_t at = i * columns + t;
      const auto gate = [&](int64_t g) { return add(load(a + g * sum), load(x + g * input)); };
      vf h, c = zero();
      if constexpr (kCell == Cell::lstm) {
        c = fmadd(sigmoid(gate(1)), load(s.c + at), gated_tangent(gate(0), gate(2)));
        h = gated_tangent(gate(3), c);
      } else if constexpr (kCell == Cell::gru) {
        const vf z = sigmoid(gate(1));
        const vf n =
            hyperbolic_tangent(fmadd(sigmoid(gate(0)), load(a + 2 * sum), load(x + 2 * input)));
        h = fmadd(z, sub(load(s.h + at), n), n);
      } else {
        h = kCell == Cell::relu ? at_least(zero(), gate(0)) : hyperbolic_tangent(gate(0));
      }
      if (active - t >= kLanes) {
        store(s.y + at, h);
        if constexpr (kCell == Cell::lstm) store(s.c + at, c);
      } else {
        float fresh[kLanes];
        store(fresh, h);
        keep_inactive(fresh, s.h + at, active - t, s.y + at);
        if constexpr (kCell == Cell::lstm) {
          store(fresh, c);
          keep_inactive(fresh, s.c + at, active - t, s.c + at);
        }
      }
    }
  }
}

inline void step_cells(const CellStep& s) {
  switch (s.cell) {
    case Cell::tanh:
      return step_of<Cell::tanh>(s);
    case Cell::relu:
      return step_of<Cell::relu>(s);
    case Cell::lstm:
      return step_of<Cell::lstm>(s);
    case Cell::gru:
      return step_of<Cell::gru>(s);
  }
}

}  // namespace SE_TARGET
}  // namespace se
