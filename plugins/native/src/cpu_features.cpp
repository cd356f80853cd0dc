#include "cpu_features.h"

#include <cstdlib>
#include <cstring>

namespace drl {
namespace {

struct Named {
  const char* name;
  drl_isa isa;
};

// Best first.
constexpr Named kInstructionSets[] = {
    {"avx512vnni", DRL_ISA_AVX512VNNI}, {"avx2", DRL_ISA_AVX2}, {"scalar", DRL_ISA_SCALAR}};

// The compiler's test asks CPUID, and XGETBV whether the system saves the wide registers. Processors
// with AVX2 have fused multiply-adds, too, but for one family.
bool has_avx2() {
#if defined(__x86_64__) && defined(__GNUC__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

bool has_avx512vnni() {
#if defined(__x86_64__) && defined(__GNUC__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

}  // namespace

const Kernels* kernels_for(drl_isa isa) {
  switch (isa) {
    case DRL_ISA_SCALAR: return &scalar_kernels();
    case DRL_ISA_AVX2: return has_avx2() ? avx2_kernels() : nullptr;
    case DRL_ISA_AVX512VNNI: return has_avx512vnni() ? avx512vnni_kernels() : nullptr;
  }
  return nullptr;
}

}  // namespace drl

extern "C" drl_status drl_isa_by_name(const char* name, drl_isa* isa) {
  if (name == nullptr || isa == nullptr) return DRL_BAD_ARGUMENT;
  for (const drl::Named& known : drl::kInstructionSets) {
    if (std::strcmp(name, known.name) == 0) {
      *isa = known.isa;
      return drl::kernels_for(known.isa) != nullptr ? DRL_OK : DRL_ISA_UNAVAILABLE;
    }
  }
  return DRL_UNKNOWN_ISA;
}

extern "C" drl_status drl_default_isa(drl_isa* isa) {
  const char* forced = std::getenv("DRL_NATIVE_ISA");
  if (forced != nullptr && *forced != '\0') return drl_isa_by_name(forced, isa);
  for (const drl::Named& known : drl::kInstructionSets) {
    if (drl_isa_by_name(known.name, isa) == DRL_OK) return DRL_OK;
  }
  return DRL_ISA_UNAVAILABLE;
}
