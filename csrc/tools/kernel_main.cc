// Runs one kernel on a random sparse matrix, again and again: for perf and other profilers.
//
//   kernel_main --packing runs --dtype float32 -n 3072 -k 768 -m 128 --sparsity 0.9 --seconds 5
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/cpu.h"
#include "kernels/roof/active.h"
#include "tools/packed_matrix.h"

namespace {

constexpr const char* kUsage =
    "usage: kernel_main [options]\n"
    "  --op linear        y = x W^T; the only op\n"
    "  --packing P        runs (default), half_runs, strips, sellp, bits, groups,\n"
    "                     tiles, columns\n"
    "  --dtype D          float32 (default), bfloat16, int8\n"
    "  -n OUT  -k IN      shape of W: 3072 x 768\n"
    "  -m TOKENS          rows of x: 128\n"
    "  --sparsity S       share of zeros in W: 0.9\n"
    "  --height H         rows of a strip: 4\n"
    "  --keep K  --of N   groups: K values in N columns: 2 of 4\n"
    "  --isa TEXT         capabilities, as in SPARSE_ENGINE_ISA\n"
    "  --threads T        default: all\n"
    "  --seconds S        how long to run: 1\n"
    "  --repeat R         how many calls to run instead\n";

struct Options {
  std::string packing = "runs", isa;
  se::DType dtype = se::DType::f32;
  int64_t out = 3072, in = 768, tokens = 128, threads = 0, repeat = 0;
  double sparsity = 0.9, seconds = 1;
  se::PackOptions pack;
};

se::DType dtype_named(const std::string& name) {
#define SE_DTYPE(enumerator, text) \
  if (name == text) return se::DType::enumerator;
  SE_DTYPES
#undef SE_DTYPE
  throw std::invalid_argument("unknown dtype " + name + ": use float32, bfloat16 or int8");
}

int64_t whole(const std::string& name, const std::string& text, int64_t least, int64_t most) {
  char* end = nullptr;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end || value < least || value > most)
    throw std::invalid_argument(name + " must be a whole number from " + std::to_string(least) +
                                " to " + std::to_string(most) + ", got " + text);
  return value;
}

double number(const std::string& name, const std::string& text, double least, double most) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end || !(value >= least && value <= most))
    throw std::invalid_argument(name + " must be a number from " + std::to_string(least) + " to " +
                                std::to_string(most) + ", got " + text);
  return value;
}

Options parse(int count, char** arguments) {
  Options o;
  for (int i = 1; i < count; i += 2) {
    const std::string name = arguments[i];
    if (i + 1 == count) throw std::invalid_argument(name + " needs a value");
    const std::string value = arguments[i + 1];
    if (name == "--op") {
      if (value != "linear") throw std::invalid_argument("unknown op " + value + ": use linear");
    } else if (name == "--packing") {
      o.packing = value;
    } else if (name == "--dtype") {
      o.dtype = dtype_named(value);
    } else if (name == "-n") {
      o.out = whole(name, value, 1, 1 << 17);
    } else if (name == "-k") {
      o.in = whole(name, value, 1, 1 << 16);
    } else if (name == "-m") {
      o.tokens = whole(name, value, 1, 1 << 20);
    } else if (name == "--sparsity") {
      o.sparsity = number(name, value, 0, 1);
    } else if (name == "--height") {
      o.pack.height = whole(name, value, 1, 4096);
    } else if (name == "--keep") {
      o.pack.keep = whole(name, value, 1, 8);
    } else if (name == "--of") {
      o.pack.of = whole(name, value, 2, 16);
    } else if (name == "--isa") {
      o.isa = value;
    } else if (name == "--threads") {
      o.threads = whole(name, value, 1, 1024);
    } else if (name == "--seconds") {
      o.seconds = number(name, value, 0, 86400);
    } else if (name == "--repeat") {
      o.repeat = whole(name, value, 1, int64_t{1} << 40);
    } else {
      throw std::invalid_argument("unknown option " + name);
    }
  }
  return o;
}

void run(const Options& o) {
  if (o.threads) omp_set_num_threads(static_cast<int>(o.threads));
  const se::Capabilities caps =
      o.isa.empty() ? se::active_capabilities() : se::detected_subset(o.isa);
  const se::DenseMatrix dense = random_matrix(o.packing, o.out, o.in, o.sparsity, 1, o.pack);
  const se::PackedMatrix weight(o.packing, dense, o.dtype, o.pack);
  std::vector<float> x(o.tokens * o.in), y(o.tokens * o.out);
  std::mt19937 engine(2);
  std::normal_distribution<float> normal;
  for (float& value : x) value = normal(engine);
  const se::Activations activations{x.data(), se::DType::f32, o.in, o.tokens, o.in};
  se::Epilogue epilogue{};
  epilogue.dtype = se::DType::f32;
  epilogue.y = y.data();
  epilogue.y_stride = o.out;

  using Clock = std::chrono::steady_clock;
  const auto seconds_since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  std::vector<double> calls;
  const Clock::time_point first = Clock::now();
  do {
    const Clock::time_point start = Clock::now();
    std::visit([&](const auto& w) { se::linear(w, activations, epilogue, caps); }, weight.view());
    calls.push_back(seconds_since(start));
  } while (o.repeat ? static_cast<int64_t>(calls.size()) < o.repeat
                    : seconds_since(first) < o.seconds);
  std::sort(calls.begin(), calls.end());
  const double median = calls[calls.size() / 2];
  const int64_t entries =
      std::count_if(dense.values.begin(), dense.values.end(), [](float v) { return v != 0; });
  std::printf("%s  %s  %lld x %lld, %lld tokens, %.1f %% zeros, %d threads\n",
              se::linear_kernel(weight.view(), o.tokens, caps), capabilities_text(caps).c_str(),
              static_cast<long long>(o.out), static_cast<long long>(o.in),
              static_cast<long long>(o.tokens),
              100 - 100.0 * static_cast<double>(entries) / static_cast<double>(o.out * o.in),
              omp_get_max_threads());
  std::printf("%zu calls: median %.2f us, fastest %.2f us; %.2f GFLOP/s of non-zeros\n",
              calls.size(), median * 1e6, calls.front() * 1e6,
              2e-9 * static_cast<double>(entries * o.tokens) / median);
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 2 && !std::strcmp(arguments[1], "--help")) {
    std::fputs(kUsage, stdout);
    return 0;
  }
  try {
    run(parse(count, arguments));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
