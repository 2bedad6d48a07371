// Scratch memory that a thread keeps between calls, and the smallest work worth a second thread.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace se {

// 64-byte aligned; contents are undefined after every get.
class Workspace {
 public:
  template <class T>
  T* get(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(std::aligned_alloc(64, bytes));
      if (!memory_) throw std::bad_alloc();
      size_ = bytes;
    }
    return static_cast<T*>(memory_.get());
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> memory_;
  size_t size_ = 0;
};

// Below this many multiply-adds a second thread costs more than it saves.
constexpr int64_t kSerialWork = 1 << 16;

int threads_for(int64_t work);

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
// Up to whole cache lines.
inline int64_t rounded(int64_t floats) { return ceil_div(floats, 16) * 16; }

// Divides one allocation into 64-byte aligned parts. A first pass with a null pointer measures the
// total in `used`; a second pass over the allocation returns the parts.
struct Arena {
  float* next;
  int64_t used = 0;
  float* take(int64_t floats) {
    float* at = next ? next + used : nullptr;
    used += rounded(floats);
    return at;
  }
};

}  // namespace se
