// Asking for weights before their turn. A kernel for few tokens reads every weight once, mostly
// from memory, and decoding it takes about as long as reading it; the hardware's own prefetch ends
// at every page, and without this the two times add up (bench/decode.py with kAhead = 0 shows it).

namespace se {
namespace SE_TARGET {

constexpr int64_t kAhead = 4096;  // bytes

inline void ask_ahead(const void* p, int64_t bytes = kAhead) {
  __builtin_prefetch(static_cast<const char*>(p) + bytes);
}

}  // namespace SE_TARGET
}  // namespace se
