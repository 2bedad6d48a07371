// The algorithm of spmm_tiles over tile products; included once per compile target. A band of two
// tiles is multiplied with two groups of 16 tokens, which loads each operand once for two products.
// The first call for a span expands its tiles into scratch memory, two entries ahead of the
// products: expansion and tile products use different units of the processor.

namespace se {
namespace SE_TARGET {

constexpr int64_t kAhead = 2;  // entries

// Expands the tiles of a span in order. Kind has the types Mask and Value, kTogether, kParts and
//   bool expand(Mask, const Value* values, Value* to)  one line, of kParts parts 512 elements
//                                                      apart; false for a value without parts
template <class Kind>
struct Expansion {
  using Mask = typename Kind::Mask;
  using Value = typename Kind::Value;
  const Mask* masks;  // null: tiles are whole
  const Value* values;
  typename Kind::Element* to;
  bool fits = true;

  Expansion(const Tiles& w, const TileSpan& span, void* scratch)
      : masks(w.masks ? static_cast<const Mask*>(w.masks) + 16 * span.tile : nullptr),
        values(static_cast<const Value*>(w.values) + span.value),
        to(static_cast<typename Kind::Element*>(scratch)) {}

  void tile() {
    SE_UNROLL
    for (int line = 0; line < 16; ++line) {
      const Mask mask = masks ? masks[line] : static_cast<Mask>(~Mask{0});
      fits &= Kind::expand(mask, values, to + line * Kind::kLine);
      values += __builtin_popcountll(mask);
    }
    if (masks) masks += 16;
    to += Kind::kTile * Kind::kParts;
  }
  void entry(int halves) {
    if (halves & 1) tile();
    if (halves & 2) tile();
  }
};

// Products is the accumulator of 2 tiles x kGroups groups of tokens:
//   Products(tokens, tile columns, add, sums)  starts at zero, or at `sums`
//   multiply<halves>(x, w0, w1, between)       x: operand of the first group; w0, w1: tiles of the
//                                              entry; calls between() where it costs least
//   store(sums)
template <class Kind, template <class, int> class Products, int kGroups>
inline TileSpanEnd multiply_span(const Tiles& w, const TileSpan& span, const TokenTiles& tokens,
                                 bool expand, bool add, void* scratch, void* sums) {
  using Element = typename Kind::Element;
  constexpr int64_t kSize = Kind::kTile * Kind::kParts;
  const bool whole = !w.masks && Kind::kParts == 1;  // multiplied where they lie
  const bool expands = expand && !whole;
  Expansion<Kind> expansion(w, span, scratch);
  const Element* first = whole ? reinterpret_cast<const Element*>(expansion.values)
                               : static_cast<const Element*>(scratch);
  const Element* tile = first;
  if (expands)
    for (int64_t e = span.begin; e < span.end && e < span.begin + kAhead; ++e)
      expansion.entry(w.halves[e]);
  Products<Kind, kGroups> products(tokens, w.columns_of_tiles(), add, sums);
  for (int64_t e = span.begin; e < span.end; ++e) {
    const int halves = w.halves[e];
    const Element* x = static_cast<const Element*>(tokens.x) + w.columns[e] * Kind::kTile;
    const bool more = expands && e + kAhead < span.end;
    const auto between = [&] {
      if (more) expansion.entry(w.halves[e + kAhead]);
    };
    if (halves == 3)
      products.template multiply<3>(x, tile, tile + kSize, between);
    else if (halves == 1)
      products.template multiply<1>(x, tile, tile, between);
    else
      products.template multiply<2>(x, tile, tile, between);
    tile += halves == 3 ? 2 * kSize : kSize;
  }
  products.store(sums);
  const int64_t tiles = (tile - first) / kSize;
  const auto* values = static_cast<const typename Kind::Value*>(w.values);
  return {expansion.fits, span.tile + tiles,
          whole ? span.value + tiles * kSize : expansion.values - values};
}

template <class Kind, template <class, int> class Products>
inline TileSpanEnd spmm_tiles(const Tiles& w, const TileSpan& span, const TokenTiles& x,
                              bool expand, bool add, void* scratch, void* sums) {
  return x.groups == 1 ? multiply_span<Kind, Products, 1>(w, span, x, expand, add, scratch, sums)
                       : multiply_span<Kind, Products, 2>(w, span, x, expand, add, scratch, sums);
}

}  // namespace SE_TARGET
}  // namespace se
