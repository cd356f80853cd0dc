// Whether operators over float weights are worth their kernels.
#pragma once

#include "../drl_native.h"

namespace drl::ort {

// Without fused multiply-adds the C library makes each out of many other instructions, and an
// operator's body in ONNX Runtime's own operators is faster.
inline bool has_fast_products() {
#if defined(__FP_FAST_FMAF)
  return true;
#else
  drl_isa isa;
  return drl_default_isa(&isa) != DRL_OK || isa != DRL_ISA_SCALAR;
#endif
}

}  // namespace drl::ort
