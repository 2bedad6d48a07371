// The configuration of AMX tile registers, for targets with AMX.

namespace se {
namespace SE_TARGET {

// Eight tiles of 16 rows of 64 bytes (Intel's Software Developer's Manual, volume 1, chapter 18).
struct alignas(64) TileConfiguration {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

inline void configure_tiles() {
  static constexpr TileConfiguration configuration;
  _tile_loadconfig(&configuration);
}

inline void release_tiles() { _tile_release(); }

// GCC's tile loads do not say that they read memory: stores to what they read must come first.
inline void stores_first() { asm volatile("" ::: "memory"); }

}  // namespace SE_TARGET
}  // namespace se
