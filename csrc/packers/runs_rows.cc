#include "packers/runs_rows.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace se {
namespace {

void require(bool ok, const char* message) {
  if (!ok) throw std::invalid_argument(message);
}

// Rows of one chunk. Elements are collected K-block after K-block, so that each row's stay in
// order.
class ChunkReader {
 public:
  ChunkReader(const Runs& w, const RunsStart& sizes, int64_t element, int64_t chunk)
      : w_(w),
        sizes_(sizes),
        element_(element),
        first_(chunk * w.chunk),
        rows_(std::min(w.chunk, w.out - chunk * w.chunk)),
        starts_(w.starts + chunk * w.k_blocks),
        counts_(rows_) {}

  // Checks the chunk, and counts the elements of each row.
  void count() {
    for (int64_t b = 0; b < w_.k_blocks; ++b) {
      check_starts(starts_[b], starts_[b + 1]);
      std::vector<bool> seen(w_.chunk + 1);
      int64_t found = 0;
      each_pair(b, [&](const Stretch& s, const uint16_t* row, int64_t, int64_t) {
        for (int i = 0; i < 2; ++i) {
          const int64_t n = s.shared + s.own + (i ? s.rest : 0);
          if (row[i] == w_.chunk) {
            require(n == 0, "runs: a value stands in no row");
            continue;
          }
          require(row[i] < rows_, "runs rows: a row lies outside the matrix");
          require(!seen[row[i]], "runs rows: a row stands twice in a K-block");
          seen[row[i]] = true;
          ++found;
          counts_[row[i]] += n;
        }
      });
      require(b > 0 || found == rows_, "runs rows: each row must stand once in the first K-block");
    }
  }

  const std::vector<int64_t>& counts() const { return counts_; }
  int64_t first() const { return first_; }
  int64_t rows() const { return rows_; }

  // Writes each row's elements from ends[row] on, and moves ends[row] past them. Rows that are not
  // wanted have ends[row] < 0.
  void fill(std::vector<int64_t>& ends, RowsBuffers& to) {
    for (int64_t b = 0; b < w_.k_blocks; ++b)
      each_pair(b, [&](const Stretch& s, const uint16_t* row, int64_t column, int64_t value) {
        emit(b, s, row, column, value, ends, to);
      });
  }

 private:
  // The stretches between two starts lead from the one to the other, inside the buffers.
  void check_starts(const RunsStart& from, const RunsStart& to) const {
    require(from.stretch >= 0 && from.stretch <= to.stretch && to.stretch <= sizes_.stretch,
            "runs starts: do not rise within the stretches");
    int64_t row = from.row, column = from.column, value = from.value;
    for (int64_t i = from.stretch; i < to.stretch; ++i) {
      const Stretch& s = w_.stretches[i];
      require(s.shared + s.own + s.rest <= w_.k_block,
              "runs stretches: a row has more columns than a K-block");
      row += int64_t{2} * s.pairs;
      column += int64_t{s.pairs} * (s.shared + 2 * s.own + s.rest);
      value += int64_t{s.pairs} * (2 * (s.shared + s.own) + s.rest);
    }
    require(row == to.row && column == to.column && value == to.value,
            "runs starts: do not fit the stretches and buffers");
    require(from.row >= 0 && from.column >= 0 && from.value >= 0 && row <= sizes_.row &&
                column <= sizes_.column && value <= sizes_.value,
            "runs starts: lie outside the buffers");
  }

  // body(stretch, its two rows, first column, first value) for each pair of K-block b.
  template <class Body>
  void each_pair(int64_t b, Body body) {
    const RunsStart& start = starts_[b];
    int64_t row = start.row, column = start.column, value = start.value;
    for (int64_t i = start.stretch; i < starts_[b + 1].stretch; ++i) {
      const Stretch& s = w_.stretches[i];
      for (int p = 0; p < s.pairs; ++p) {
        body(s, w_.rows + row, column, value);
        row += 2;
        column += s.shared + 2 * s.own + s.rest;
        value += 2 * (s.shared + s.own) + s.rest;
      }
    }
  }

  void emit(int64_t b, const Stretch& s, const uint16_t* row, int64_t column, int64_t value,
            std::vector<int64_t>& ends, RowsBuffers& to) {
    const uint8_t* columns = w_.columns + column;
    for (int i = 0; i < 2; ++i) {
      if (row[i] == w_.chunk) continue;
      clear();
      for (int k = 0; k < s.shared; ++k) put(columns[k], value + 2 * k + i);
      for (int k = 0; k < s.own; ++k)
        put(columns[s.shared + 2 * k + i], value + 2 * (s.shared + k) + i);
      if (i)
        for (int k = 0; k < s.rest; ++k)
          put(columns[s.shared + 2 * s.own + k], value + 2 * (s.shared + s.own) + k);
      const int64_t left = w_.in - b * w_.k_block;
      require(last_ < std::min(left, w_.k_block), "runs columns: a column lies outside the matrix");
      if (ends[row[i]] >= 0) take(b * w_.k_block, ends[row[i]], to);
    }
  }

  void clear() {
    std::fill(used_, used_ + 4, 0);
    last_ = -1;
  }

  void put(uint8_t column, int64_t value) {
    uint64_t& word = used_[column / 64];
    const uint64_t bit = uint64_t{1} << (column % 64);
    require(!(word & bit), "runs: an element is stored twice");
    word |= bit;
    at_[column] = value;
    last_ = std::max<int64_t>(last_, column);
  }

  // The columns that were put, in order.
  void take(int64_t k0, int64_t& end, RowsBuffers& to) {
    const char* values = static_cast<const char*>(w_.values);
    for (int word = 0; word < 4; ++word)
      for (uint64_t left = used_[word]; left; left &= left - 1) {
        const int64_t column = 64 * word + __builtin_ctzll(left);
        to.columns[end] = static_cast<int32_t>(k0 + column);
        std::memcpy(to.values.data() + end * element_, values + at_[column] * element_, element_);
        ++end;
      }
  }

  const Runs& w_;
  const RunsStart& sizes_;
  const int64_t element_, first_, rows_;
  const RunsStart* const starts_;
  std::vector<int64_t> counts_;
  uint64_t used_[4];  // which columns of the K-block the row has
  int64_t at_[256];   // and the place of their values
  int64_t last_;      // the highest of them
};

}  // namespace

RowsBuffers rows_of_runs(const Runs& w, const RunsStart& sizes, int64_t element, int64_t begin,
                         int64_t end) {
  RowsBuffers to;
  to.pointers.reserve(end - begin + 1);
  to.pointers.push_back(0);
  std::vector<ChunkReader> readers;
  for (int64_t c = begin / w.chunk; c * w.chunk < end; ++c) {
    ChunkReader& reader = readers.emplace_back(w, sizes, element, c);
    reader.count();
    for (int64_t r = 0; r < reader.rows(); ++r)
      if (reader.first() + r >= begin && reader.first() + r < end)
        to.pointers.push_back(to.pointers.back() + reader.counts()[r]);
  }
  to.columns.resize(to.pointers.back());
  to.values.resize(to.pointers.back() * element);
  for (ChunkReader& reader : readers) {
    std::vector<int64_t> ends(reader.rows(), -1);
    for (int64_t r = 0; r < reader.rows(); ++r) {
      const int64_t row = reader.first() + r;
      if (row >= begin && row < end) ends[r] = to.pointers[row - begin];
    }
    reader.fill(ends, to);
  }
  return to;
}

}  // namespace se
