// Recurrent cells over the vector layer. Absolute error below 1e-6 for states of order one.

namespace se {
namespace SE_TARGET {

inline vf hyperbolic_tangent(vf x) {
  const vf e = exponential(mul(x, set1(-2.0f)));
  return div(sub(set1(1.0f), e), add(set1(1.0f), e));
}

// sigmoid(a) tanh(b) with one division. Where e^-2b would make the product of the denominators
// overflow, tanh has long been -1.
inline vf gated_tangent(vf a, vf b) {
  const vf one = set1(1.0f);
  const vf ea = exponential(sub(zero(), a));
  const vf eb = exponential(at_most(set1(30.0f), mul(b, set1(-2.0f))));
  return div(sub(one, eb), mul(add(one, ea), add(one, eb)));
}

// Results of the lanes that are live, the old state of the others.
inline void keep_rest(const float* fresh, const float* old, int64_t live, float* to) {
  for (int64_t l = 0; l < kLanes; ++l) to[l] = l < live ? fresh[l] : old[l];
}

template <Cell kCell>
inline void step_of(const CellStep& s) {
  constexpr int64_t G = gates_of(kCell);
  // A single sequence has 16 units in a row, many have one.
  const int64_t rows = s.width == 1 ? 1 : 16, columns = s.width == 1 ? 16 : s.width;
  const int64_t live = s.width == 1 ? 16 * s.live : s.live;
  const int64_t sum = 16 * s.width, input = 16 * s.inputs_stride;  // from gate to gate
  for (int64_t i = 0; i < s.blocks * rows; ++i) {
    const int64_t block = i / rows, row = i % rows;
    for (int64_t t = 0; t < columns; t += kLanes) {
      const float* a = s.sums + block * G * sum + row * s.width + t;
      const float* x = s.inputs + block * G * input + row * s.inputs_stride + t;
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
      if (live - t >= kLanes) {
        store(s.y + at, h);
        if constexpr (kCell == Cell::lstm) store(s.c + at, c);
      } else {
        float fresh[kLanes];
        store(fresh, h);
        keep_rest(fresh, s.h + at, live - t, s.y + at);
        if constexpr (kCell == Cell::lstm) {
          store(fresh, c);
          keep_rest(fresh, s.c + at, live - t, s.c + at);
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
