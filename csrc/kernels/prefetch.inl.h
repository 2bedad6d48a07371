// Software prefetch of weights. A kernel for few tokens reads every weight once, mostly from
// memory, and decoding takes about as long as reading. The hardware prefetcher stops at every page,
// so that without software prefetch the two times add up (bench/decode.py with a distance of 0
// shows it).

namespace se {
namespace SE_TARGET {

constexpr int64_t kPrefetchDistance = 4096;  // bytes

inline void prefetch(const void* p, int64_t bytes = kPrefetchDistance) {
  __builtin_prefetch(static_cast<const char*>(p) + bytes);
}

}  // namespace SE_TARGET
}  // namespace se
