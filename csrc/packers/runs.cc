#include "packers/runs.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <tuple>

namespace se {
namespace {

// Candidates considered as the partner of a row. In a random pattern of 3072 x 768, 55 % of the
// non-zeros then share their column at 50 % zeros, and 23 % at 90 %.
constexpr size_t kLookAhead = 64;
// `shared` is rounded down to a multiple of this, unless all columns are shared: fewer different
// lengths make longer stretches. Short rows have few different lengths anyway.
int grain(int count) { return count < 20 ? 2 : 4; }

// One row inside one K-block.
struct Row {
  uint16_t index;       // inside the chunk
  int32_t begin, end;   // entries in the CSR
  uint64_t columns[4];  // which of the up to 256 columns are used
  int count() const { return end - begin; }
};

int overlap(const Row& a, const Row& b) {
  int n = 0;
  for (int i = 0; i < 4; ++i) n += __builtin_popcountll(a.columns[i] & b.columns[i]);
  return n;
}

bool uses(const Row& row, int64_t column) { return row.columns[column / 64] >> (column % 64) & 1; }

struct Pair {
  const Row *a, *b;
  int shared;
  int own() const { return a->count() - shared; }
  int rest() const { return b->count() - a->count(); }
};

class ChunkPacker {
 public:
  ChunkPacker(const CsrView& w, int64_t row0, int64_t rows, int64_t chunk, int64_t block)
      : w_(w), row0_(row0), chunk_(chunk), block_(block) {
    cursors_.assign(w.pointers + row0, w.pointers + row0 + rows);
  }

  void run() {
    const int64_t blocks = std::max<int64_t>(1, (w_.in + block_ - 1) / block_);
    for (int64_t b = 0; b < blocks; ++b) {
      out.starts.push_back(here());
      collect(b);
      match();
      emit(b * block_);
    }
  }

  RunsStart here() const {
    return {static_cast<int32_t>(out.stretches.size()), static_cast<int32_t>(out.rows.size()),
            static_cast<int32_t>(out.columns.size()),
            static_cast<int32_t>(out.values.size() / w_.element)};
  }

  RunsBuffers out;

 private:
  // Collects the rows with entries in K-block b, and in the first K-block every row, so that every
  // result is initialised. The discarded row `chunk` makes their number even.
  void collect(int64_t b) {
    rows_.clear();
    for (size_t r = 0; r < cursors_.size(); ++r) {
      Row row{static_cast<uint16_t>(r), cursors_[r], cursors_[r], {}};
      const int32_t last = w_.pointers[row0_ + static_cast<int64_t>(r) + 1];
      for (; row.end < last && w_.columns[row.end] < (b + 1) * block_; ++row.end) {
        const int64_t k = w_.columns[row.end] - b * block_;
        row.columns[k / 64] |= uint64_t{1} << (k % 64);
      }
      cursors_[r] = row.end;
      if (b == 0 || row.count()) rows_.push_back(row);
    }
    if (rows_.size() % 2) rows_.push_back({static_cast<uint16_t>(chunk_), 0, 0, {}});
    std::stable_sort(rows_.begin(), rows_.end(),
                     [](const Row& a, const Row& b) { return a.count() < b.count(); });
  }

  void match() {
    pairs_.clear();
    std::vector<bool> taken(rows_.size());
    for (size_t i = 0; i < rows_.size(); ++i) {
      if (taken[i]) continue;
      size_t best = 0;
      int most = -1;
      for (size_t j = i + 1, seen = 0; j < rows_.size() && seen < kLookAhead; ++j) {
        if (taken[j]) continue;
        if (most >= 0 && rows_[j].count() != rows_[i].count()) break;
        const int n = overlap(rows_[i], rows_[j]);
        if (n > most) most = n, best = j;
        if (n == rows_[i].count()) break;
        ++seen;
      }
      taken[best] = true;
      const bool all = most == rows_[i].count();
      pairs_.push_back(
          {&rows_[i], &rows_[best], all ? most : most - most % grain(rows_[i].count())});
    }
    std::stable_sort(pairs_.begin(), pairs_.end(), [](const Pair& p, const Pair& q) {
      return std::make_tuple(p.b->count(), p.rest(), p.shared) <
             std::make_tuple(q.b->count(), q.rest(), q.shared);
    });
  }

  void put(int32_t entry) {
    const char* value = static_cast<const char*>(w_.values) + entry * w_.element;
    out.values.insert(out.values.end(), value, value + w_.element);
  }

  void emit(int64_t k0) {
    for (const Pair& p : pairs_) {
      const uint16_t shared = static_cast<uint16_t>(p.shared);
      const Stretch n{1, shared, static_cast<uint16_t>(p.own()), static_cast<uint16_t>(p.rest())};
      const bool fresh = out.starts.back().stretch == static_cast<int32_t>(out.stretches.size());
      Stretch* last = fresh ? nullptr : &out.stretches.back();
      if (last && last->shared == n.shared && last->own == n.own && last->rest == n.rest &&
          last->pairs < std::numeric_limits<uint16_t>::max())
        ++last->pairs;
      else
        out.stretches.push_back(n);
      out.rows.push_back(p.a->index);
      out.rows.push_back(p.b->index);
      emit_columns(p, k0);
    }
  }

  void emit_columns(const Pair& p, int64_t k0) {
    std::vector<int32_t> own_a, own_b;
    int left = p.shared;
    int32_t b = p.b->begin;
    for (int32_t a = p.a->begin; a < p.a->end; ++a) {
      const int64_t k = w_.columns[a] - k0;
      if (left == 0 || !uses(*p.b, k)) {
        own_a.push_back(a);
        continue;
      }
      for (; w_.columns[b] != w_.columns[a]; ++b) own_b.push_back(b);
      --left;
      out.columns.push_back(static_cast<uint8_t>(k));
      put(a);
      put(b++);
    }
    for (; b < p.b->end; ++b) own_b.push_back(b);
    for (size_t i = 0; i < own_b.size(); ++i) {
      if (i < own_a.size()) {
        out.columns.push_back(static_cast<uint8_t>(w_.columns[own_a[i]] - k0));
        put(own_a[i]);
      }
      out.columns.push_back(static_cast<uint8_t>(w_.columns[own_b[i]] - k0));
      put(own_b[i]);
    }
  }

  const CsrView& w_;
  const int64_t row0_, chunk_, block_;
  std::vector<int32_t> cursors_;
  std::vector<Row> rows_;
  std::vector<Pair> pairs_;
};

template <class T>
void append(std::vector<T>& to, const std::vector<T>& from, size_t unit = 1) {
  to.insert(to.end(), from.begin(), from.end());
  if (to.size() / unit > static_cast<size_t>(std::numeric_limits<int32_t>::max()))
    throw std::length_error("runs: a buffer outgrows int32; split the weight");
}

}  // namespace

RunsBuffers pack_runs(const CsrView& w, int64_t chunk, int64_t block) {
  const int64_t chunks = (w.out + chunk - 1) / chunk;
  std::vector<ChunkPacker> packers;
  packers.reserve(chunks);
  for (int64_t c = 0; c < chunks; ++c)
    packers.emplace_back(w, c * chunk, std::min(chunk, w.out - c * chunk), chunk, block);
  in_parallel(chunks, [&](int64_t c) { packers[c].run(); });
  RunsBuffers all;
  for (ChunkPacker& packer : packers) {
    const int32_t stretch = static_cast<int32_t>(all.stretches.size());
    const int32_t row = static_cast<int32_t>(all.rows.size());
    const int32_t column = static_cast<int32_t>(all.columns.size());
    const int32_t value = static_cast<int32_t>(all.values.size() / w.element);
    for (const RunsStart& s : packer.out.starts)
      all.starts.push_back({s.stretch + stretch, s.row + row, s.column + column, s.value + value});
    append(all.stretches, packer.out.stretches);
    append(all.rows, packer.out.rows);
    append(all.columns, packer.out.columns);
    append(all.values, packer.out.values, w.element);
    packer.out = {};
  }
  all.starts.push_back({static_cast<int32_t>(all.stretches.size()),
                        static_cast<int32_t>(all.rows.size()),
                        static_cast<int32_t>(all.columns.size()),
                        static_cast<int32_t>(all.values.size() / w.element)});
  all.rows.insert(all.rows.end(), {0, 0});  // the kernel looks one pair ahead
  return all;
}

}  // namespace se
