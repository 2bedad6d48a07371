#include <algorithm>

#include "bindings/weight.h"

namespace se {
namespace {

// Reads the buffers of a packing in the order of buffer_names in sparse_engine/packings/cpu. Checks
// dtypes, sizes and the last pointers only. That pointers rise and that columns are in range is
// validated once, when a packing is built or loaded.
class Buffers {
 public:
  explicit Buffers(const std::vector<py::array>& arrays) : arrays_(arrays) {}

  template <class T>
  const T* read(int64_t size, const char* what) {
    const py::array& a = next();
    if (!py::isinstance<py::array_t<T>>(a) || a.size() != size || !contiguous(a))
      throw std::invalid_argument(std::string(what) + ": wrong dtype, size or layout");
    return static_cast<const T*>(a.data());
  }
  template <class T>
  const T* read_any(int64_t* size, const char* what) {
    *size = peek().size();
    return read<T>(*size, what);
  }
  // Values of float32 or bfloat16.
  const void* read_values(DType* dtype, int64_t* size, const char* what) {
    const py::array& a = next();
    *dtype = dtype_of(a, what);
    *size = a.size();
    require(contiguous(a), "values must be contiguous");
    return a.data();
  }
  const py::array& peek() const {
    require(at_ < arrays_.size(), "a packing lacks buffers");
    return arrays_[at_];
  }
  void end() const { require(at_ == arrays_.size(), "a packing has too many buffers"); }

 private:
  const py::array& next() {
    const py::array& a = peek();
    ++at_;
    return a;
  }
  const std::vector<py::array>& arrays_;
  size_t at_ = 0;
};

Strips strips_view(Buffers buffers, const std::vector<int64_t>& params, int64_t out, int64_t in) {
  require(params.size() == 2, "strips: params are height and block");
  Strips w{};
  w.out = out;
  w.in = in;
  w.height = params[0];
  w.k_block = params[1];
  require(w.height > 0 && w.height <= 4096 && w.k_block > 0 && w.k_block <= 65536,
          "strips: sizes out of range");
  w.strips = (out + w.height - 1) / w.height;
  w.k_blocks = std::max<int64_t>(1, (in + w.k_block - 1) / w.k_block);
  int64_t values = 0, columns = 0;
  w.values = buffers.read_values(&w.dtype, &values, "strips values");
  w.columns = buffers.read_any<uint16_t>(&columns, "strips columns");
  w.pointers = buffers.read<int32_t>(w.k_blocks * w.strips + 1, "strips pointers");
  buffers.end();
  require(w.pointers[0] == 0 && w.pointers[w.k_blocks * w.strips] == columns,
          "strips: pointers must run from 0 to the number of columns");
  require(values == columns * w.height, "strips: values must be columns x height");
  return w;
}

// Values of float32, bfloat16 or int8.
const void* read_any_values(Buffers& buffers, DType* dtype, int64_t* size, const char* what) {
  if (!py::isinstance<py::array_t<int8_t>>(buffers.peek()))
    return buffers.read_values(dtype, size, what);
  *dtype = DType::i8;
  return buffers.read_any<int8_t>(size, what);
}

Columns columns_view(Buffers buffers, const std::vector<int64_t>& params, int64_t out, int64_t in) {
  require(params.size() == 1 && (params[0] == 16 || params[0] == 32) && in <= 65536,
          "columns: params are the height, 16 or 32; at most 65536 inputs");
  Columns w{};
  w.out = out;
  w.in = in;
  w.height = params[0];
  w.bands = (out + w.height - 1) / w.height;
  int64_t values = 0, columns = 0;
  w.values = read_any_values(buffers, &w.dtype, &values, "columns values");
  w.columns = buffers.read_any<uint16_t>(&columns, "columns columns");
  w.pointers = buffers.read<int32_t>(w.bands + 1, "columns pointers");
  require(w.dtype != DType::f32, "columns: values must be bfloat16 or int8");
  if (w.dtype == DType::i8) w.scales = buffers.read<float>(out, "columns scales");
  buffers.end();
  require(w.pointers[0] == 0 && w.pointers[w.bands] * w.step() == columns &&
              values == columns * w.height,
          "columns: pointers must run from 0 to the number of steps, of 32 or 64 columns each");
  return w;
}

Runs runs_view(Buffers buffers, const std::vector<int64_t>& params, int64_t out, int64_t in,
               bool halves) {
  require(params.size() == 2, "runs: params are chunk and block");
  const bool quads = py::isinstance<py::array_t<int8_t>>(buffers.peek());
  Runs w{};
  w.out = out;
  w.in = quads ? (in + 3) / 4 : in;
  w.chunk = params[0];
  w.k_block = params[1];
  require(w.chunk > 0 && w.chunk <= 65535 && w.k_block > 0 && w.k_block <= 256,
          "runs: sizes out of range");
  w.chunks = (out + w.chunk - 1) / w.chunk;
  w.k_blocks = std::max<int64_t>(1, (w.in + w.k_block - 1) / w.k_block);
  int64_t values = 0, columns = 0, rows = 0, stretches = 0;
  if (quads) {
    w.dtype = DType::i8;
    w.values = buffers.read_any<int8_t>(&values, "runs values");
    values /= 4;
  } else {
    w.values = buffers.read_values(&w.dtype, &values, "runs values");
  }
  w.columns = buffers.read_any<uint8_t>(&columns, "runs columns");
  w.rows = buffers.read_any<uint16_t>(&rows, "runs rows");
  w.stretches =
      reinterpret_cast<const Stretch*>(buffers.read_any<uint16_t>(&stretches, "runs stretches"));
  w.starts = reinterpret_cast<const RunsStart*>(
      buffers.read<int32_t>(4 * (w.chunks * w.k_blocks + 1), "runs starts"));
  if (quads) {
    w.scales = buffers.read<float>(out, "runs scales");
    w.corrections = buffers.read<int32_t>(w.chunks * w.chunk + 1, "runs corrections");
  }
  if (halves) {
    require(w.dtype == DType::bf16, "half_runs: values must be bfloat16");
    w.powers = buffers.read<float>(w.chunks * w.chunk + 1, "half_runs powers");
  }
  buffers.end();
  const RunsStart& end = w.starts[w.chunks * w.k_blocks];
  require(int64_t{4} * end.stretch == stretches && end.row + 2 == rows && end.column == columns &&
              end.value == values,
          "runs: starts must end where the buffers do");
  for (int64_t c = 0; c < w.chunks; ++c) {
    const RunsStart* first = w.starts + c * w.k_blocks;
    const int64_t count = std::min(w.chunk, out - c * w.chunk);
    require(first[1].row - first[0].row == (count + 1) / 2 * 2,
            "runs: every row must be in the first K-block");
  }
  return w;
}

Groups groups_view(Buffers buffers, const std::vector<int64_t>& params, int64_t out, int64_t in) {
  require(params.size() == 2, "groups: params are keep and of");
  Groups w{};
  w.out = out;
  w.in = in;
  w.keep = params[0];
  w.of = params[1];
  while (int64_t{1} << w.bits < w.of && w.bits < 5) ++w.bits;
  require(w.bits >= 1 && w.bits <= 4 && int64_t{1} << w.bits == w.of &&
              (w.of == 2 * w.keep || w.of == 4 * w.keep),
          "groups: of must be 2, 4, 8 or 16, and 2 or 4 times keep");
  w.steps = (in + w.span() - 1) / w.span();
  int64_t values = 0;
  w.values = read_any_values(buffers, &w.dtype, &values, "groups values");
  w.positions = buffers.read<uint8_t>(out * w.steps * 2 * w.bits + 4, "groups positions");
  if (w.dtype == DType::i8) w.scales = buffers.read<float>(out, "groups scales");
  buffers.end();
  require(values == out * w.steps * 16, "groups: values must be [out, 16 steps]");
  return w;
}

SellP sellp_view(Buffers buffers, const std::vector<int64_t>& params, int64_t out, int64_t in) {
  require(params.empty() && in <= 65536, "sellp: no params, and at most 65536 inputs");
  SellP w{};
  w.out = out;
  w.in = in;
  w.groups = (out + 15) / 16;
  int64_t values = 0, picks = 0, steps = 0;
  w.values = read_any_values(buffers, &w.dtype, &values, "sellp values");
  w.picks = buffers.read_any<uint8_t>(&picks, "sellp picks");
  w.offsets = buffers.read_any<uint16_t>(&steps, "sellp offsets");
  w.starts = buffers.read<int32_t>(w.groups + 1, "sellp starts");
  w.rows = buffers.read<int32_t>(w.groups * 16, "sellp rows");
  if (w.dtype == DType::i8) w.scales = buffers.read<float>(out, "sellp scales");
  buffers.end();
  require(values == 16 * steps && picks == 16 * steps && w.starts[0] == 0 &&
              w.starts[w.groups] == steps,
          "sellp: values and picks must be [steps, 16], starts run from 0 to steps");
  return w;
}

Bits bits_view(Buffers buffers, const std::vector<int64_t>& params, int64_t out, int64_t in) {
  require(params.empty(), "bits: no params");
  Bits w{};
  w.out = out;
  w.in = in;
  w.stride = (in + 63) / 64 * 8;
  int64_t values = 0;
  w.values = read_any_values(buffers, &w.dtype, &values, "bits values");
  w.mask = buffers.read<uint8_t>(out * w.stride, "bits mask");
  w.offsets = buffers.read<int32_t>(out + 1, "bits offsets");
  if (w.dtype == DType::i8) {
    w.scales = buffers.read<float>(out, "bits scales");
    w.corrections = buffers.read<int32_t>(out, "bits corrections");
  }
  buffers.end();
  require(w.offsets[0] == 0 && int64_t{w.offsets[out]} + 64 == values,
          "bits: offsets must run from 0 to 64 before the end of values");
  return w;
}

Tiles tiles_view(Buffers buffers, const std::vector<int64_t>& params, int64_t out, int64_t in) {
  require(params.empty() && in <= int64_t{1} << 20, "tiles: no params, and at most 2^20 inputs");
  Tiles w{};
  w.out = out;
  w.in = in;
  w.bands = (out + Tiles::kBand - 1) / Tiles::kBand;
  int64_t values = 0, masks = 0, entries = 0;
  w.values = read_any_values(buffers, &w.dtype, &values, "tiles values");
  w.masks = w.dtype == DType::i8
                ? static_cast<const void*>(buffers.read_any<uint64_t>(&masks, "tiles masks"))
                : buffers.read_any<uint32_t>(&masks, "tiles masks");
  if (!masks) w.masks = nullptr;
  w.columns = buffers.read_any<uint16_t>(&entries, "tiles columns");
  w.halves = buffers.read<uint8_t>(entries, "tiles halves");
  w.entries = buffers.read<int32_t>(w.bands + 1, "tiles entries");
  w.tiles = buffers.read<int32_t>(w.bands + 1, "tiles tiles");
  w.starts = buffers.read<int32_t>(w.bands + 1, "tiles starts");
  if (w.dtype == DType::i8) {
    w.scales = buffers.read<float>(out, "tiles scales");
    w.corrections = buffers.read<int32_t>(w.bands * Tiles::kBand, "tiles corrections");
  }
  buffers.end();
  const int64_t tiles = w.tiles[w.bands];
  require(w.entries[0] == 0 && w.entries[w.bands] == entries && w.tiles[0] == 0 &&
              w.starts[0] == 0 && int64_t{w.starts[w.bands]} + 64 == values &&
              (masks ? masks == 16 * tiles : values == tiles * w.size() + 64),
          "tiles: pointers must run from 0 to the sizes of the buffers");
  return w;
}

}  // namespace

PackedWeight view_of(const std::string& packing, const std::vector<py::array>& buffers,
                     const std::vector<int64_t>& params, int64_t out, int64_t in) {
  require(out >= 0 && in >= 0, "a weight must not have negative sizes");
  const Buffers b(buffers);
  if (packing == Runs::kPacking) return runs_view(b, params, out, in, false);
  if (packing == Runs::kHalfPacking) return runs_view(b, params, out, in, true);
  if (packing == Strips::kPacking) return strips_view(b, params, out, in);
  if (packing == SellP::kPacking) return sellp_view(b, params, out, in);
  if (packing == Bits::kPacking) return bits_view(b, params, out, in);
  if (packing == Groups::kPacking) return groups_view(b, params, out, in);
  if (packing == Columns::kPacking) return columns_view(b, params, out, in);
  if (packing == Tiles::kPacking) return tiles_view(b, params, out, in);
  throw std::invalid_argument("unknown packing " + packing);
}

}  // namespace se
