// How the tokens of a pass are cut into panels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "ops/spmm.h"

namespace se {

// Tokens of one sequence that lie side by side in one panel.
struct Segment {
  int64_t panel, lane, queries;
  int64_t sequence;
  int64_t position;         // of the first one in its sequence
  int64_t first, segments;  // all segments of the piece
};

// New tokens of one sequence, from `position` on.
struct Piece {
  int64_t sequence, position, tokens;
};

struct Cut {
  int64_t tokens = 0, widest;
  std::vector<Segment> segments;
  std::vector<int64_t> begin;  // first segment of each panel, and the end

  Cut(const std::vector<Piece>& pieces, int64_t widest_panel) : widest(widest_panel) {
    for (const Piece& piece : pieces) {
      const int64_t first = static_cast<int64_t>(segments.size());
      for (int64_t at = 0; at < piece.tokens;) {
        const int64_t token = tokens + at, lane = token % widest;
        const int64_t n = std::min(piece.tokens - at, widest - lane);
        segments.push_back(
            {token / widest, lane, n, piece.sequence, piece.position + at, first, 0});
        at += n;
      }
      const int64_t count = static_cast<int64_t>(segments.size()) - first;
      for (int64_t i = first; i < first + count; ++i) segments[i].segments = count;
      tokens += piece.tokens;
    }
    for (int64_t p = 0, i = 0; p <= panels(); ++p) {
      while (i < static_cast<int64_t>(segments.size()) && segments[i].panel < p) ++i;
      begin.push_back(i);
    }
  }
  int64_t panels() const { return ceil_div(tokens, widest); }
  int64_t live(int64_t p) const { return std::min(tokens - p * widest, widest); }
  int64_t width(int64_t p) const { return panel_width(live(p), 16, widest); }
};

}  // namespace se
