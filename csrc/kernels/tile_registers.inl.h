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

// GCC's intrinsics for the configuration say that they read or write eight of its bytes.
inline void load_configuration(const TileConfiguration& configuration) {
  asm volatile("ldtilecfg %0" ::"m"(configuration));
}
inline void store_configuration(TileConfiguration& configuration) {
  asm volatile("sttilecfg %0" : "=m"(configuration));
}

inline void configure_tiles() {
  static constexpr TileConfiguration configuration;
  load_configuration(configuration);
}

inline void release_tiles() { _tile_release(); }

// The configuration for the time of a kernel that may run inside and outside of code that uses the
// registers: what was configured before is so again afterwards.
class ConfiguredTiles {
 public:
  ConfiguredTiles() {
    static constexpr TileConfiguration ours;
    store_configuration(before_);
    same_ = __builtin_memcmp(&before_, &ours, sizeof ours) == 0;
    if (!same_) configure_tiles();
  }
  ~ConfiguredTiles() {
    if (same_) return;
    if (before_.palette)
      load_configuration(before_);
    else
      release_tiles();
  }
  ConfiguredTiles(const ConfiguredTiles&) = delete;

 private:
  TileConfiguration before_;
  bool same_;
};

// GCC's tile loads do not say that they read memory: stores to what they read must come first.
inline void stores_first() { asm volatile("" ::: "memory"); }

}  // namespace SE_TARGET
}  // namespace se
