// How the tokens of a pass are laid out in panels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "ops/spmm.h"

namespace se {

// Consecutive new tokens of one sequence, from `position` on.
struct SequenceSpan {
  int64_t sequence, position, tokens;
};

// The part of a span in one panel, in lanes from `lane` on.
struct Segment {
  int64_t panel, lane, queries;
  int64_t sequence;
  int64_t position;                 // of its first token in the sequence
  int64_t first_segment, segments;  // all segments of its span
};

// Panels are filled in order: all but the last hold `widest` tokens.
struct PanelLayout {
  int64_t tokens = 0, widest;
  std::vector<Segment> segments;
  std::vector<int64_t> first_of_panel;  // first segment of each panel, then their number

  PanelLayout(const std::vector<SequenceSpan>& spans, int64_t widest_panel) : widest(widest_panel) {
    for (const SequenceSpan& span : spans) {
      const int64_t first = static_cast<int64_t>(segments.size());
      for (int64_t at = 0; at < span.tokens;) {
        const int64_t token = tokens + at, lane = token % widest;
        const int64_t n = std::min(span.tokens - at, widest - lane);
        segments.push_back({token / widest, lane, n, span.sequence, span.position + at, first, 0});
        at += n;
      }
      const int64_t count = static_cast<int64_t>(segments.size()) - first;
      for (int64_t i = first; i < first + count; ++i) segments[i].segments = count;
      tokens += span.tokens;
    }
    for (int64_t p = 0, i = 0; p <= panels(); ++p) {
      while (i < static_cast<int64_t>(segments.size()) && segments[i].panel < p) ++i;
      first_of_panel.push_back(i);
    }
  }
  int64_t panels() const { return ceil_div(tokens, widest); }
  int64_t tokens_of(int64_t p) const { return std::min(tokens - p * widest, widest); }
  int64_t width(int64_t p) const { return panel_width(tokens_of(p), 16, widest); }
};

}  // namespace se
