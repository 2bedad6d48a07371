// Built once per compile target, with its flags: they enable what the target needs, and no more.
#include "core/capabilities.h"

namespace se {
namespace {

constexpr Capabilities kEnabled = cap::none
#ifdef __AVX2__
                                  | cap::avx2
#endif
#ifdef __AVX512F__
                                  | cap::avx512
#endif
#ifdef __AVX512VNNI__
                                  | cap::vnni
#endif
#ifdef __AVX512VBMI2__
                                  | cap::vbmi2
#endif
#ifdef __AVX512BF16__
                                  | cap::bf16
#endif
#ifdef __AVX512FP16__
                                  | cap::fp16
#endif
#ifdef __AMX_TILE__
                                  | cap::amx
#endif
#ifdef __AMX_INT8__
                                  | cap::amx_int8
#endif
#ifdef __AMX_BF16__
                                  | cap::amx_bf16
#endif
#ifdef __AMX_FP16__
                                  | cap::amx_fp16
#endif
    ;
static_assert(kEnabled == targets::SE_TARGET.needs, "flags and needs of a target differ");

}  // namespace
}  // namespace se
