// Detects whether anything changed since a native view was made. One call replaces a Python loop
// that would run at every step of a network.
#include "bindings/arrays.h"

namespace se {
namespace {

PyObject* name_of(const char* text) { return PyUnicode_InternFromString(text); }

// Whether two Python integers are equal.
bool equal_numbers(py::object number, PyObject* recorded) {
  return PyLong_AsLongLong(number.ptr()) == PyLong_AsLongLong(recorded);
}

bool entry_unchanged(PyObject* entry) {
  static PyObject *const data_ptr = name_of("data_ptr"), *const version = name_of("_version");
  require(PyTuple_Check(entry) && PyTuple_GET_SIZE(entry) == 5 &&
              PyDict_Check(PyTuple_GET_ITEM(entry, 0)),
          "an entry is (dict, name, object, data_ptr, version)");
  PyObject* const object = PyTuple_GET_ITEM(entry, 2);
  PyObject* const now =
      PyDict_GetItemWithError(PyTuple_GET_ITEM(entry, 0), PyTuple_GET_ITEM(entry, 1));
  if (PyErr_Occurred()) throw py::error_already_set();
  if ((now ? now : Py_None) != object) return false;
  const auto same = [&](PyObject* number, int item) {
    PyObject* const recorded = PyTuple_GET_ITEM(entry, item);
    if (!number) throw py::error_already_set();
    return equal_numbers(py::reinterpret_steal<py::object>(number), recorded);
  };
  return (PyTuple_GET_ITEM(entry, 3) == Py_None ||
          same(PyObject_CallMethodNoArgs(object, data_ptr), 3)) &&
         (PyTuple_GET_ITEM(entry, 4) == Py_None || same(PyObject_GetAttr(object, version), 4));
}

bool unchanged(const py::list& watched) {
  // By index, since a call into Python may change the list.
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(watched.ptr()); ++i) {
    const auto entry = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(watched.ptr(), i));
    if (!entry_unchanged(entry.ptr())) return false;
  }
  return true;
}

}  // namespace

void bind_watch(py::module_& m) {
  m.def("unchanged", &unchanged, py::arg("watched"),
        "Whether every entry (dict, name, object, data_ptr, version) is unchanged: dict[name] is\n"
        "the object, and its data_ptr() and _version equal the recorded ones that are not None.");
}

}  // namespace se
