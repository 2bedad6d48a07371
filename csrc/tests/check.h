// Assertions of the native tests: a failure prints the place and ends the test.
#pragma once

#include <cstdio>
#include <cstdlib>

#define CHECK(condition)                                                           \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                \
    }                                                                              \
  } while (0)

// `statement` throws an exception of type `type`.
#define CHECK_THROWS(type, statement) \
  do {                                \
    bool thrown = false;              \
    try {                             \
      statement;                      \
    } catch (const type&) {           \
      thrown = true;                  \
    }                                 \
    CHECK(thrown && #statement);      \
  } while (0)
