#include "attention_kernels.h"

#include "cpu_features.h"

const drl::AttentionKernels* drl::attention_kernels_for(drl_isa isa) {
  if (kernels_for(isa) == nullptr) return nullptr;
  switch (isa) {
    case DRL_ISA_SCALAR: return &scalar_attention_kernels();
    case DRL_ISA_AVX2: return avx2_attention_kernels();
    case DRL_ISA_AVX512VNNI: return avx512_attention_kernels();
  }
  return nullptr;
}
