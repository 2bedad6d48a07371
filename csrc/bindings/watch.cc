// Whether anything changed since a native view was made: one call for what Python would take a
// loop for, at every single step of a network.
#include "bindings/arrays.h"

namespace se {
namespace {

PyObject* name_of(const char* text) { return PyUnicode_InternFromString(text); }

// Whether a number that Python gives is the one that was noted.
bool is_number(py::object number, PyObject* noted) {
  return PyLong_AsLongLong(number.ptr()) == PyLong_AsLongLong(noted);
}

bool entry_unchanged(PyObject* entry) {
  static PyObject *const place = name_of("data_ptr"), *const version = name_of("_version");
  require(PyTuple_Check(entry) && PyTuple_GET_SIZE(entry) == 5 &&
              PyDict_Check(PyTuple_GET_ITEM(entry, 0)),
          "an entry is (dict, name, object, place, version)");
  PyObject* const object = PyTuple_GET_ITEM(entry, 2);
  PyObject* const now =
      PyDict_GetItemWithError(PyTuple_GET_ITEM(entry, 0), PyTuple_GET_ITEM(entry, 1));
  if (PyErr_Occurred()) throw py::error_already_set();
  if ((now ? now : Py_None) != object) return false;
  const auto same = [&](PyObject* number, int item) {
    PyObject* const noted = PyTuple_GET_ITEM(entry, item);
    if (!number) throw py::error_already_set();
    return is_number(py::reinterpret_steal<py::object>(number), noted);
  };
  return (PyTuple_GET_ITEM(entry, 3) == Py_None ||
          same(PyObject_CallMethodNoArgs(object, place), 3)) &&
         (PyTuple_GET_ITEM(entry, 4) == Py_None || same(PyObject_GetAttr(object, version), 4));
}

bool unchanged(const py::list& watched) {
  // By position: a call of Python's may change the list.
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(watched.ptr()); ++i) {
    const auto entry = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(watched.ptr(), i));
    if (!entry_unchanged(entry.ptr())) return false;
  }
  return true;
}

}  // namespace

void bind_watch(py::module_& m) {
  m.def("unchanged", &unchanged, py::arg("watched"),
        "Whether each (dict, name, object, place, version) still holds: the dict has the object\n"
        "under the name, and its data_ptr() and _version, where they are not None, are those.");
}

}  // namespace se
