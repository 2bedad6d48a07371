// Sets of capabilities, their texts, and the rows that tables choose for them.
#include <stdexcept>
#include <string>

#include "core/cpu.h"
#include "kernels/spmm_strips/kernel.h"
#include "kernels/table.h"
#include "ops/spmm.h"
#include "tests/check.h"
#include "tools/packed_matrix.h"

namespace se {
namespace {

Capabilities parsed(const char* text) { return parse_capabilities(text, cap::avx512); }

void test_sets() {
  CHECK(cap::vnni.covers(cap::avx2) && cap::vnni.covers(cap::avx512));
  CHECK(!cap::avx512.covers(cap::vnni));
  CHECK((cap::bf16 - cap::only::bf16) == cap::avx512);
  CHECK(cap::amx_bf16.covers(cap::amx) && !cap::amx_bf16.covers(cap::bf16));
}

void test_texts() {
  CHECK(parsed("scalar") == cap::none);
  CHECK(parsed("native") == cap::avx512);
  CHECK(parsed("-avx512") == cap::avx2);
  CHECK(parsed("avx512,vnni,bf16") == (cap::vnni | cap::bf16));
  CHECK(parsed("avx512_bf16,-vnni,+vnni") == parsed("avx512_bf16"));
  CHECK(parsed("avx512_amx,-amx") == parsed("avx512_fp16"));
  CHECK(parsed("avx512_amx,-avx2") == cap::none);
  for (const Preset& preset : presets()) {
    CHECK(capabilities_text(preset.capabilities) == preset.name);
    CHECK(parsed(preset.name) == preset.capabilities);
  }
  // Every subset that is closed under prerequisites survives the way through a text.
  for (uint32_t bits = 0; bits < 1u << capability_names({~0u}).size(); ++bits) {
    std::string text = "scalar";
    for (const std::string& name : capability_names({bits})) text += "," + name;
    const Capabilities closed = parsed(text.c_str());
    CHECK(closed.covers({bits}));
    CHECK(parsed(capabilities_text(closed).c_str()) == closed);
  }
  for (const char* wrong : {"", "mmx", "avx512,", ",avx2", "native,-avx512_vnni", "avx512 vnni"})
    CHECK_THROWS(std::invalid_argument, parsed(wrong));
}

void test_detection() {
  const Capabilities detected = detected_capabilities();
  require_detected(detected, "detected");
  CHECK(parse_capabilities("native", detected) == detected);
  const Capabilities every = parsed("avx512_amx,amx_fp16");
  if (!detected.covers(every)) CHECK_THROWS(std::invalid_argument, require_detected(every, "all"));
}

struct Row {
  DType weight;
  CompileTarget target;
};

void test_best_row() {
  constexpr Row table[] = {{DType::bf16, targets::avx512_bf16},
                           {DType::bf16, targets::avx512_vbmi2},
                           {DType::f32, targets::avx512},
                           {DType::bf16, targets::scalar},
                           {DType::f32, targets::scalar}};
  const auto chosen = [&](const char* text, DType weight) {
    return std::string(best_row(table, weight, parsed(text)).target.name);
  };
  CHECK(chosen("avx512_bf16", DType::bf16) == "avx512_bf16");
  CHECK(chosen("avx512_bf16,-bf16", DType::bf16) == "avx512_vbmi2");
  CHECK(chosen("avx512,vnni,bf16", DType::bf16) == "avx512_bf16");
  CHECK(chosen("avx512_bf16,-avx512", DType::bf16) == "scalar");
  CHECK(chosen("avx512", DType::f32) == "avx512");
  CHECK_THROWS(std::invalid_argument, best_row(table, DType::i8, cap::none));
}

void test_layers_read_float_panels() {
  const PackedMatrix weight("strips", random_matrix("strips", 32, 32, 0.5, 1), DType::bf16);
  const Capabilities caps = parsed("avx512_amx");
  CHECK(spmm_strips(DType::bf16, caps).panel == (SE_X86 ? Panel::bf16 : Panel::floats));
  with_panel_work(weight.view(), caps, 1,
                  [](const auto& work) { CHECK(work.kernel.panel == Panel::floats); });
}

}  // namespace
}  // namespace se

int main() {
  se::test_sets();
  se::test_texts();
  se::test_detection();
  se::test_best_row();
  se::test_layers_read_float_panels();
}
