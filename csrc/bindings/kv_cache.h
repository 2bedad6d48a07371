// A cache of keys and values as Python holds it.
#pragma once

#include <memory>
#include <mutex>

#include "bindings/arrays.h"
#include "layers/cache.h"

namespace se {

// A cache with a lock: two calls must not write to it at once.
struct BoundCache {
  KvCache cache;
  mutable std::mutex mutex;

  // layers: (key_heads, head_size) of each.
  BoundCache(const std::vector<std::pair<int64_t, int64_t>>& layers, int64_t sequences,
             const std::string& dtype);
  explicit BoundCache(const KvCache& from) : cache(from) {}

  // Waits without the GIL: the thread that holds the lock may need it to finish.
  std::unique_lock<std::mutex> lock() const;

  std::unique_ptr<BoundCache> copy() const;
  std::vector<int64_t> lengths() const;
  int64_t bytes() const;
  const char* dtype() const { return dtype_name(cache.dtype()); }
  void crop(const std::vector<int64_t>& lengths);
  void select(const std::vector<int64_t>& from);
};

void bind_kv_cache(py::module_& m);

}  // namespace se
