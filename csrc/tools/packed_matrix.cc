#include "tools/packed_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>

#include "packers/bits.h"
#include "packers/columns.h"
#include "packers/groups.h"
#include "packers/runs.h"
#include "packers/sellp.h"
#include "packers/strips.h"
#include "packers/tiles.h"

namespace se {
namespace {

constexpr int64_t kStripsKBlock = 192, kRunsKBlock = 128, kRunsChunk = 64;

uint16_t bf16_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

float rounded_to_bf16(float value) {
  const uint32_t bits = static_cast<uint32_t>(bf16_bits(value)) << 16;
  std::memcpy(&value, &bits, 4);
  return value;
}

// A CSR matrix that owns its buffers.
struct Csr {
  const int64_t out, in, element;
  std::vector<int32_t> pointers{0}, columns;
  std::vector<uint8_t> values;

  Csr(int64_t rows, int64_t width, int64_t bytes) : out(rows), in(width), element(bytes) {}

  void add(int64_t column, const void* value) {
    columns.push_back(static_cast<int32_t>(column));
    const uint8_t* bytes = static_cast<const uint8_t*>(value);
    values.insert(values.end(), bytes, bytes + element);
  }
  void end_row() { pointers.push_back(static_cast<int32_t>(columns.size())); }
  CsrView view() const {
    return {out, in, pointers.data(), columns.data(), values.data(), element};
  }
};

// int8 rows with their scales, and -128 times the sum of each row.
struct Quantised {
  std::vector<int8_t> values;
  std::vector<float> scales;
  std::vector<int32_t> corrections;
};

Quantised quantise(const DenseMatrix& dense) {
  Quantised q;
  q.values.resize(dense.values.size());
  for (int64_t r = 0; r < dense.out; ++r) {
    float most = 0;
    for (int64_t k = 0; k < dense.in; ++k) most = std::max(most, std::fabs(dense.at(r, k)));
    const float scale = most / 127;
    int32_t sum = 0;
    for (int64_t k = 0; k < dense.in; ++k) {
      const float value = scale > 0 ? std::nearbyint(dense.at(r, k) / scale) : 0;
      q.values[r * dense.in + k] = static_cast<int8_t>(value);
      sum += q.values[r * dense.in + k];
    }
    q.scales.push_back(scale);
    q.corrections.push_back(-128 * sum);
  }
  return q;
}

Csr float_csr(const DenseMatrix& dense, DType dtype) {
  Csr csr(dense.out, dense.in, dtype == DType::f32 ? 4 : 2);
  for (int64_t r = 0; r < dense.out; ++r, csr.end_row())
    for (int64_t k = 0; k < dense.in; ++k) {
      const float value = dense.at(r, k);
      const uint16_t bits = bf16_bits(value);
      if (value != 0) csr.add(k, dtype == DType::f32 ? static_cast<const void*>(&value) : &bits);
    }
  return csr;
}

// `unit` columns that lie side by side count as one, of `unit` bytes.
Csr int8_csr(const DenseMatrix& dense, const std::vector<int8_t>& values, int64_t unit) {
  Csr csr(dense.out, (dense.in + unit - 1) / unit, unit);
  for (int64_t r = 0; r < dense.out; ++r, csr.end_row())
    for (int64_t c = 0; c < csr.in; ++c) {
      int8_t bytes[4] = {0, 0, 0, 0};
      for (int64_t i = 0; i < std::min(unit, dense.in - c * unit); ++i)
        bytes[i] = values[r * dense.in + c * unit + i];
      if (bytes[0] || bytes[1] || bytes[2] || bytes[3]) csr.add(c, bytes);
    }
  return csr;
}

// Runs::powers.
std::vector<float> row_powers(const DenseMatrix& dense, int64_t count) {
  std::vector<float> powers(count, 1.0f);
  for (int64_t r = 0; r < dense.out; ++r) {
    float largest = 0;
    for (int64_t k = 0; k < dense.in; ++k) largest = std::max(largest, std::fabs(dense.at(r, k)));
    if (largest > 0) powers[r] = std::exp2(5.0f - static_cast<float>(std::ilogb(largest)));
  }
  return powers;
}

}  // namespace

DenseMatrix random_matrix(const std::string& packing, int64_t out, int64_t in, double sparsity,
                          uint32_t seed, const PackOptions& options) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::bernoulli_distribution zero(sparsity);
  DenseMatrix dense{out, in, std::vector<float>(out * in)};
  const bool blocks = packing == Strips::kPacking || packing == Columns::kPacking;
  const int64_t rows = blocks ? options.height : 1;
  for (int64_t r0 = 0; r0 < out; r0 += rows)
    for (int64_t k = 0; k < in; ++k) {
      if (zero(engine)) continue;
      for (int64_t r = r0; r < std::min(r0 + rows, out); ++r)
        dense.values[r * in + k] = rounded_to_bf16(normal(engine));
    }
  if (packing != Groups::kPacking) return dense;
  for (int64_t r = 0; r < out; ++r)
    for (int64_t k = 0, kept = 0; k < in; ++k) {
      if (k % options.of == 0) kept = 0;
      if (dense.at(r, k) != 0 && ++kept > options.keep) dense.values[r * in + k] = 0;
    }
  return dense;
}

// Keeps a buffer for as long as the view, aligned for every type.
template <class T>
const T* PackedMatrix::keep(std::vector<T> buffer) {
  std::vector<uint64_t> words((buffer.size() * sizeof(T) + 7) / 8 + 1);
  if (!buffer.empty()) std::memcpy(words.data(), buffer.data(), buffer.size() * sizeof(T));
  buffers_.push_back(std::move(words));
  return reinterpret_cast<const T*>(buffers_.back().data());
}

PackedMatrix::PackedMatrix(const std::string& packing, const DenseMatrix& dense, DType dtype,
                           const PackOptions& options)
    : held_(dense) {
  const bool int8 = dtype == DType::i8, halves = packing == Runs::kHalfPacking;
  const bool runs = packing == Runs::kPacking || halves;
  if (halves && dtype != DType::bf16) throw std::invalid_argument("half_runs: bfloat16 only");
  if (int8 && packing == Strips::kPacking) throw std::invalid_argument("strips: no int8");
  Quantised q;
  if (int8) {
    q = quantise(dense);
    for (int64_t r = 0; r < dense.out; ++r)
      for (int64_t k = 0; k < dense.in; ++k)
        held_.values[r * dense.in + k] = q.values[r * dense.in + k] * q.scales[r];
  }
  const Csr csr = int8 ? int8_csr(dense, q.values, runs ? 4 : 1) : float_csr(dense, dtype);
  const CsrView pattern = csr.view();
  const auto describe = [&](auto w) {
    w.out = dense.out;
    w.in = pattern.in;
    w.dtype = dtype;
    return w;
  };
  if (runs) {
    RunsBuffers b = pack_runs(pattern, kRunsChunk, kRunsKBlock);
    Runs w = describe(Runs{});
    w.chunk = kRunsChunk;
    w.k_block = kRunsKBlock;
    w.chunks = (w.out + w.chunk - 1) / w.chunk;
    w.k_blocks = std::max<int64_t>(1, (w.in + w.k_block - 1) / w.k_block);
    w.values = keep(std::move(b.values));
    w.columns = keep(std::move(b.columns));
    w.rows = keep(std::move(b.rows));
    w.stretches = keep(std::move(b.stretches));
    w.starts = keep(std::move(b.starts));
    if (int8) {
      q.corrections.resize(w.chunks * w.chunk + 1);
      w.scales = keep(std::move(q.scales));
      w.corrections = keep(std::move(q.corrections));
    }
    if (halves) w.powers = keep(row_powers(dense, w.chunks * w.chunk + 1));
    view_ = w;
  } else if (packing == Strips::kPacking) {
    StripsBuffers b = pack_strips(pattern, options.height, kStripsKBlock);
    Strips w = describe(Strips{});
    w.height = options.height;
    w.k_block = kStripsKBlock;
    w.strips = (w.out + w.height - 1) / w.height;
    w.k_blocks = std::max<int64_t>(1, (w.in + w.k_block - 1) / w.k_block);
    w.values = keep(std::move(b.values));
    w.columns = keep(std::move(b.columns));
    w.pointers = keep(std::move(b.pointers));
    view_ = w;
  } else if (packing == SellP::kPacking) {
    SellPBuffers b = pack_sellp(pattern);
    SellP w = describe(SellP{});
    w.groups = (w.out + 15) / 16;
    w.values = keep(std::move(b.values));
    w.picks = keep(std::move(b.picks));
    w.offsets = keep(std::move(b.offsets));
    w.starts = keep(std::move(b.starts));
    w.rows = keep(std::move(b.rows));
    if (int8) w.scales = keep(std::move(q.scales));
    view_ = w;
  } else if (packing == Bits::kPacking) {
    BitsBuffers b = pack_bits(pattern);
    Bits w = describe(Bits{});
    w.stride = (w.in + 63) / 64 * 8;
    w.values = keep(std::move(b.values));
    w.mask = keep(std::move(b.mask));
    w.offsets = keep(std::move(b.offsets));
    if (int8) {
      w.scales = keep(std::move(q.scales));
      w.corrections = keep(std::move(q.corrections));
    }
    view_ = w;
  } else if (packing == Groups::kPacking) {
    GroupsBuffers b = pack_groups(pattern, options.keep, options.of);
    Groups w = describe(Groups{});
    w.keep = options.keep;
    w.of = options.of;
    while (int64_t{1} << w.bits < w.of) ++w.bits;
    w.steps = (w.in + w.span() - 1) / w.span();
    w.values = keep(std::move(b.values));
    w.positions = keep(std::move(b.positions));
    if (int8) w.scales = keep(std::move(q.scales));
    view_ = w;
  } else if (packing == Columns::kPacking) {
    if (dtype == DType::f32) throw std::invalid_argument("columns: bfloat16 and int8 only");
    ColumnsBuffers b = pack_columns(pattern, options.height > 16 ? 32 : 16);
    Columns w = describe(Columns{});
    w.height = options.height > 16 ? 32 : 16;
    w.bands = (w.out + w.height - 1) / w.height;
    w.values = keep(std::move(b.values));
    w.columns = keep(std::move(b.columns));
    w.pointers = keep(std::move(b.pointers));
    if (int8) w.scales = keep(std::move(q.scales));
    view_ = w;
  } else if (packing == Tiles::kPacking) {
    TilesBuffers b = pack_tiles(pattern);
    Tiles w = describe(Tiles{});
    w.bands = (w.out + Tiles::kBand - 1) / Tiles::kBand;
    w.values = keep(std::move(b.values));
    w.masks = b.masks.empty() ? nullptr : keep(std::move(b.masks));
    w.columns = keep(std::move(b.columns));
    w.halves = keep(std::move(b.halves));
    w.entries = keep(std::move(b.entries));
    w.tiles = keep(std::move(b.tiles));
    w.starts = keep(std::move(b.starts));
    if (int8) {
      q.corrections.resize(w.bands * Tiles::kBand);
      w.scales = keep(std::move(q.scales));
      w.corrections = keep(std::move(q.corrections));
    }
    view_ = w;
  } else {
    throw std::invalid_argument(
        "unknown packing " + packing +
        ": use runs, half_runs, strips, sellp, bits, groups, tiles or columns");
  }
}

}  // namespace se
