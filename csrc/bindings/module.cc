// The Python module: checks arguments, releases the GIL and computes nothing itself.
#include "bindings/arrays.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "Native kernels of sparse_engine. Arrays are numpy; bfloat16 travels as uint16.";
  se::bind_linear(m);
  se::bind_stack(m);
  se::bind_recurrent(m);
  se::bind_packers(m);
  se::bind_machine(m);
  se::bind_watch(m);
}
